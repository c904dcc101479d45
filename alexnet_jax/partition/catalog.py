"""The named layouts. A layout is data: this file is all there is to each."""

from collections.abc import Iterable

from alexnet_jax.partition import layout

Layout = layout.Layout
Placement = layout.Placement

# fc8 arrives as a sum in every split layout: whole logits on every device, no
# rule for the number of classes, and 1,000 numbers sent instead of 2,048.

ONE_DEVICE = Layout(name="one_device", mesh={"device": 1})

# The split of 2012: each device holds one column.
TWO_COLUMN = Layout(
  name="two_column",
  mesh={"column": 2},
  conv=Placement(features=("column",)),
  fc=Placement(features=("column",)),
  layers={"fc8": Placement(features=("column",), arrive="sum")},
)

DATA_PARALLEL = Layout(
  name="data_parallel",
  mesh={"data": 2},
  conv=Placement(batch=("data",)),
  fc=Placement(batch=("data",)),
)

TWO_COLUMN_DATA = Layout(
  name="two_column_data",
  mesh={"data": 2, "column": 2},
  conv=Placement(batch=("data",), features=("column",)),
  fc=Placement(batch=("data",), features=("column",)),
  layers={
    "fc8": Placement(batch=("data",), features=("column",), arrive="sum")
  },
)

LAYOUTS = (ONE_DEVICE, TWO_COLUMN, DATA_PARALLEL, TWO_COLUMN_DATA)


def find(name: str, layouts: Iterable[Layout] = LAYOUTS) -> Layout:
  """The layout of that name.

  Raises:
    ValueError: there is none.
  """
  for candidate in layouts:
    if candidate.name == name:
      return candidate
  names = ", ".join(candidate.name for candidate in layouts)
  raise ValueError(
    f"unknown layout {name!r}, expected one of {names}. Set config.layout.name."
  )

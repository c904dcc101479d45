"""The named layouts. A layout is data: this file is all there is to each."""

from collections.abc import Iterable

from alexnet_jax.partition import layout

Layout = layout.Layout
Placement = layout.Placement

# Inputs of fully connected layers that are split by features arrive so that a
# step sends the `fewest` bytes. At full size fc6 sums, 4,096 values for each
# image instead of 9,216; fc7 gathers, which sends as few; fc8 sums, 1,000
# instead of 4,096, so the logits are replicated and any number of classes will
# do.

ONE_DEVICE = Layout(name="one_device", mesh={"device": 1})

# The split of 2012: each device holds one column.
TWO_COLUMN = Layout(
  name="two_column",
  mesh={"column": 2},
  conv=Placement(features=("column",)),
  fc=Placement(features=("column",), arrive="fewest"),
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
  fc=Placement(batch=("data",), features=("column",), arrive="fewest"),
)

# "One weird trick" (Krizhevsky 2014): the convolutions, with most of the work
# and few of the weights, split the batch over every device; the fully connected
# layers, with the reverse, split their features over `model`.
ONE_WEIRD_TRICK = Layout(
  name="one_weird_trick",
  mesh={"data": 2, "model": 2},
  conv=Placement(batch=("data", "model")),
  fc=Placement(batch=("data",), features=("model",), arrive="fewest"),
)

# Every layer splits its features. fc7 reads only its device's units of fc6, so
# one exchange, the sum after fc7, serves both; fc8, 0.6 % of the work, is then
# computed on every device and needs no exchange.
TENSOR_PARALLEL = Layout(
  name="tensor_parallel",
  mesh={"data": 1, "model": 2},
  conv=Placement(batch=("data",), features=("model",)),
  fc=Placement(batch=("data",), features=("model",)),
  layers={
    "fc7": Placement(batch=("data",), features=("model",), arrive="sum"),
    "fc8": Placement(batch=("data",)),
  },
)

# Data parallelism that stores each kernel and its velocity once, not once per
# device (Rajbhandari et al. 2020, "ZeRO").
FULLY_SHARDED = Layout(
  name="fully_sharded",
  mesh={"data": 2},
  conv=Placement(batch=("data",), fsdp=("data",)),
  fc=Placement(batch=("data",), fsdp=("data",)),
)

# The same for the columns' halves of the kernels.
TWO_COLUMN_SHARDED = Layout(
  name="two_column_sharded",
  mesh={"data": 2, "column": 2},
  conv=Placement(batch=("data",), features=("column",), fsdp=("data",)),
  fc=Placement(
    batch=("data",), features=("column",), arrive="fewest", fsdp=("data",)
  ),
)

LAYOUTS = (
  ONE_DEVICE,
  TWO_COLUMN,
  DATA_PARALLEL,
  TWO_COLUMN_DATA,
  ONE_WEIRD_TRICK,
  TENSOR_PARALLEL,
  FULLY_SHARDED,
  TWO_COLUMN_SHARDED,
)


def find(
  name: str,
  layouts: Iterable[Layout] = LAYOUTS,
  *,
  field: str = "config.layout.name",
) -> Layout:
  """Finds a layout by name; a ValueError says to set `field`."""
  for candidate in layouts:
    if candidate.name == name:
      return candidate
  names = ", ".join(candidate.name for candidate in layouts)
  raise ValueError(
    f"unknown layout {name!r}, expected one of {names}. Set {field}."
  )

"""The named layouts. A layout is data: this file is all there is to each."""

from collections.abc import Iterable

from alexnet_jax.partition import layout

Layout = layout.Layout
Placement = layout.Placement

# Fully connected layers are split by `features`: by inputs or by outputs, so
# that a step sends the fewest bytes. At full size fc6 is split by inputs, and
# sums 4,096 values for each image instead of gathering 9,216; fc7 by outputs,
# which sends as few; fc8 by inputs, which sums 1,000 instead of gathering
# 4,096, so the logits are replicated and any number of classes will do.

ONE_DEVICE = Layout(name="one_device", mesh={"device": 1})

# The split of 2012: each device holds one column.
TWO_COLUMN = Layout(
  name="two_column",
  mesh={"column": 2},
  conv=Placement(outputs=("column",)),
  fc=Placement(features=("column",)),
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
  conv=Placement(batch=("data",), outputs=("column",)),
  fc=Placement(batch=("data",), features=("column",)),
)

# "One weird trick" (Krizhevsky 2014): the convolutions, with most of the work
# and few of the weights, split the batch over every device; the fully connected
# layers, with the reverse, split their features over `model`.
ONE_WEIRD_TRICK = Layout(
  name="one_weird_trick",
  mesh={"data": 2, "model": 2},
  conv=Placement(batch=("data", "model")),
  fc=Placement(batch=("data",), features=("model",)),
)

# Every layer splits its features. fc7 reads only its device's units of fc6, so
# one exchange, the sum after fc7, serves both; fc8, 0.6 % of the work, is then
# computed on every device and needs no exchange.
TENSOR_PARALLEL = Layout(
  name="tensor_parallel",
  mesh={"data": 1, "model": 2},
  conv=Placement(batch=("data",), outputs=("model",)),
  fc=Placement(batch=("data",), outputs=("model",)),
  layers={
    "fc7": Placement(batch=("data",), inputs=("model",)),
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
  conv=Placement(batch=("data",), outputs=("column",), fsdp=("data",)),
  fc=Placement(batch=("data",), features=("column",), fsdp=("data",)),
)

# Convolutions by batch over every device, and the dense layers' matrices split
# in two dimensions: the split of PaSE's optimum for AlexNet (Elango 2021, table
# II). What one layer splits its outputs over, the next splits its inputs over,
# so between them partial sums are added and nothing else is sent.
TWO_DIMENSIONAL = Layout(
  name="two_dimensional",
  mesh={"data": 1, "x": 2, "y": 2},
  conv=Placement(batch=("data", "y", "x")),
  fc=Placement(batch=("data",), inputs=("x",), outputs=("y",)),
  layers={"fc7": Placement(batch=("data",), inputs=("y",), outputs=("x",))},
)

# The same dense layers after two columns, each of which splits its batch. On 8
# devices it sends the least of all here, 21 MB in a step of 128 images.
TWO_COLUMN_2D = Layout(
  name="two_column_2d",
  mesh={"data": 1, "column": 2, "model": 2},
  conv=Placement(batch=("data", "model"), outputs=("column",)),
  fc=Placement(batch=("data",), inputs=("column",), outputs=("model",)),
  layers={
    "fc7": Placement(batch=("data",), inputs=("model",), outputs=("column",))
  },
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
  TWO_DIMENSIONAL,
  TWO_COLUMN_2D,
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

"""The named wirings. A wiring is the network: another one, other results."""

import dataclasses
from typing import Any

from alexnet_jax.network import wiring

Layer = wiring.Layer
Wiring = wiring.Wiring


def rewire(
  base: Wiring,
  name: str,
  *,
  columns: int | None = None,
  without: tuple[str, ...] = (),
  **changes: dict[str, Any],
) -> Wiring:
  """A wiring that differs from another in some rows.

  Args:
    base: the wiring to start from.
    name: of the new one.
    columns: of the new one; None keeps.
    without: layers that it does not have.
    **changes: layer -> {field of `Layer`: value}.

  Returns:
    The new wiring.
  """
  return dataclasses.replace(
    base,
    name=name,
    columns=base.columns if columns is None else columns,
    layers=tuple(
      dataclasses.replace(layer, **changes.get(layer.name, {}))
      for layer in base.layers
      if layer.name not in without
    ),
  )


# The network of 2012 with the released code's own initial values: standard
# deviation .03 in conv3-5 where the paper says .01 everywhere, and biases of 1
# in conv2, conv4, conv5, fc6, fc7 (Krizhevsky et al. 2012, section 5;
# cuda-convnet, layers-145.cfg).
#
# The padding of conv1 is on one side only: windows start at pixel 0 and the
# last of 55 ends three pixels past a 224-pixel image. With 227 pixels no window
# reaches the zeros, so both sizes give 55x55.
#
#           output, 224-pixel image   after pooling   columns read
#   conv1   55 x 55 x  96             27 x 27         the image
#   conv2   27 x 27 x 256             13 x 13         its own
#   conv3   13 x 13 x 384                             all
#   conv4   13 x 13 x 384                             its own
#   conv5   13 x 13 x 256              6 x  6         its own
#   fc6     4096                                      all
#   fc7     4096                                      all
#   fc8     1000                                      all
ALEXNET_2012 = Wiring(
  name="alexnet2012",
  columns=2,
  layers=(
    Layer(
      name="conv1",
      reads="image",
      features=96,
      window=11,
      stride=4,
      padding=(0, 3),
      normalize="column",
      pool=wiring.Pool(),
    ),
    Layer(
      name="conv2",
      reads="own",
      features=256,
      window=5,
      padding=(2, 2),
      normalize="column",
      pool=wiring.Pool(),
      bias=1.0,
    ),
    Layer(
      name="conv3",
      reads="all",
      features=384,
      window=3,
      padding=(1, 1),
      kernel_std=0.03,
    ),
    Layer(
      name="conv4",
      reads="own",
      features=384,
      window=3,
      padding=(1, 1),
      kernel_std=0.03,
      bias=1.0,
    ),
    Layer(
      name="conv5",
      reads="own",
      features=256,
      window=3,
      padding=(1, 1),
      pool=wiring.Pool(),
      kernel_std=0.03,
      bias=1.0,
    ),
    Layer(name="fc6", reads="all", features=4096, dropout=True, bias=1.0),
    Layer(name="fc7", reads="all", features=4096, dropout=True, bias=1.0),
    Layer(name="fc8", reads="all", features=1000, activation="linear"),
  ),
)

# The comparison net of the paper's section 3.2, footnote: half of the maps but
# in the last convolution, everything else as above (layers-145-half.cfg).
# 59,798,312 parameters.
ONE_GPU = rewire(
  ALEXNET_2012,
  "one_gpu",
  columns=1,
  conv1={"features": 48},
  conv2={"features": 128, "reads": "all"},
  conv3={"features": 192},
  conv4={"features": 192, "reads": "all"},
  conv5={"features": 256, "reads": "all"},
)

# One tower, as in "one weird trick" (Krizhevsky 2014) and in torchvision. The
# paper's footnote has 384 maps in conv4; its parameter count and the released
# files have 256. 61,100,840 parameters.
MERGED_TOWER = rewire(
  ALEXNET_2012,
  "merged_tower",
  columns=1,
  conv1={"features": 64},
  conv2={"features": 192, "reads": "all"},
  conv4={"features": 256, "reads": "all"},
  conv5={"reads": "all"},
)

# Two columns that meet at the logits only (run 150): 160 maps a column in
# conv2, 4096 units in fc6 and 2048 in fc7, each from its own column.
# 60,714,408 parameters.
INDEPENDENT_COLUMNS = rewire(
  ALEXNET_2012,
  "independent_columns",
  conv2={"features": 320},
  conv3={"reads": "own"},
  fc6={"features": 8192, "reads": "own"},
  fc7={"reads": "own"},
)

# The columns meet one layer later (runs 132, 133), or at the fully connected
# layers only, with 256 maps a column in conv3 (run 127). Those runs also fed a
# small copy of the image into conv2 and had 64 maps in conv1; these do not, so
# that they differ from the network of 2012 in where its columns meet.
# 61,186,408 and 60,891,624 parameters.
JOIN_AT_CONV4 = rewire(
  ALEXNET_2012,
  "join_at_conv4",
  conv3={"reads": "own"},
  conv4={"reads": "all"},
)
JOIN_AT_FC = rewire(
  ALEXNET_2012,
  "join_at_fc",
  conv3={"features": 512, "reads": "own"},
)

# Four columns of 32, 64, 192, 192, 64 maps and 1024 units, the widths of run
# 129; there conv3 read pairs of columns, here it reads all four. Without that
# run's small copy of the image. 62,423,528 parameters.
FOUR_COLUMN = rewire(
  ALEXNET_2012,
  "four_column",
  columns=4,
  conv1={"features": 128},
  conv3={"features": 768},
  conv4={"features": 768},
)

# The network of 2012 without one of its middle convolutions (section 7 of the
# paper: about 2 % more top-1 error each). The columns still meet at the layer
# that comes third, and fc6 still reads 6 x 6 maps.
WITHOUT_CONV3 = rewire(
  ALEXNET_2012, "without_conv3", without=("conv3",), conv4={"reads": "all"}
)
WITHOUT_CONV4 = rewire(ALEXNET_2012, "without_conv4", without=("conv4",))
WITHOUT_CONV5 = rewire(
  ALEXNET_2012,
  "without_conv5",
  without=("conv5",),
  conv4={"pool": wiring.Pool()},
)

# Ablations of the authors' notebook: dropout of a fifth after conv4 (run 177),
# stochastic pooling in block 2 (run 178), nothing normalized in block 2 (run
# 167).
DROPOUT_AFTER_CONV4 = rewire(
  ALEXNET_2012,
  "dropout_after_conv4",
  conv4={"dropout": True, "dropout_rate": 0.2},
)
STOCHASTIC_POOL2 = rewire(
  ALEXNET_2012,
  "stochastic_pool2",
  conv2={"pool": wiring.Pool(kind="stochastic")},
)
WITHOUT_LRN2 = rewire(ALEXNET_2012, "without_lrn2", conv2={"normalize": "none"})

# The network of 2012 with every layer reading all columns; normalization stays
# inside a column. With zeros where the columns did not meet it computes what
# that one computes: see `block_diagonal.py`. 62,378,344 parameters, the number
# that AlexNet is often said to have.
BLOCK_DIAGONAL = rewire(
  ALEXNET_2012,
  "block_diagonal",
  conv2={"reads": "all"},
  conv4={"reads": "all"},
  conv5={"reads": "all"},
)

# LeNet-5 as d2l has it: sigmoids, average pooling, one channel of 28 pixels.
# The layers have the names of those that they stand in for, so that a layout
# places them. 61,706 parameters.
LENET5 = Wiring(
  name="lenet5",
  columns=1,
  image_channels=1,
  published_size=28,
  published_classes=10,
  layers=(
    Layer(
      name="conv1",
      reads="image",
      features=6,
      window=5,
      padding=(2, 2),
      activation="sigmoid",
      pool=wiring.Pool(window=2, stride=2, kind="average"),
    ),
    Layer(
      name="conv2",
      reads="all",
      features=16,
      window=5,
      activation="sigmoid",
      pool=wiring.Pool(window=2, stride=2, kind="average"),
    ),
    Layer(name="fc6", reads="all", features=120, activation="sigmoid"),
    Layer(name="fc7", reads="all", features=84, activation="sigmoid"),
    Layer(name="fc8", reads="all", features=10, activation="linear"),
  ),
)

# Three convolutions and the logits, for images of 32 pixels: a stand-in for the
# network of the paper's figure 1, which is not described (cuda-convnet,
# layers-18pct.cfg, without its normalization and with max pooling throughout).
# As for LeNet-5, the last layer has the name of the last.
FOUR_LAYER = Wiring(
  name="four_layer",
  columns=1,
  published_size=32,
  published_classes=10,
  layers=(
    *(
      Layer(
        name=name,
        reads=reads,
        features=features,
        window=5,
        padding=(2, 2),
        pool=wiring.Pool(),
      )
      for name, reads, features in (
        ("conv1", "image", 32),
        ("conv2", "all", 32),
        ("conv3", "all", 64),
      )
    ),
    Layer(name="fc8", reads="all", features=10, activation="linear"),
  ),
)

# AlexNet as d2l has it: one column that reads everything, a pixel of zeros on
# each side of the image, so maps of 54 pixels and at last 5 x 5, nothing
# normalized. Introductions quote its size for that of 2012; see complexity.py.
ALEXNET_D2L = rewire(
  ALEXNET_2012,
  "alexnet_d2l",
  columns=1,
  conv1={"padding": (1, 1), "normalize": "none"},
  conv2={"reads": "all", "normalize": "none"},
  conv4={"reads": "all"},
  conv5={"reads": "all"},
)

WIRINGS = (
  ALEXNET_2012,
  ONE_GPU,
  MERGED_TOWER,
  INDEPENDENT_COLUMNS,
  JOIN_AT_CONV4,
  JOIN_AT_FC,
  FOUR_COLUMN,
  WITHOUT_CONV3,
  WITHOUT_CONV4,
  WITHOUT_CONV5,
  DROPOUT_AFTER_CONV4,
  STOCHASTIC_POOL2,
  WITHOUT_LRN2,
  BLOCK_DIAGONAL,
  LENET5,
  FOUR_LAYER,
  ALEXNET_D2L,
)


def find(name: str, *, field: str = "config.network.wiring") -> Wiring:
  """The wiring of that name; `field` is what an error says to set.

  Raises:
    ValueError: there is none.
  """
  for candidate in WIRINGS:
    if candidate.name == name:
      return candidate
  names = ", ".join(candidate.name for candidate in WIRINGS)
  raise ValueError(
    f"unknown wiring {name!r}, expected one of {names}. Set {field}."
  )

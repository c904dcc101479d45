"""The named wirings; unlike a layout, another wiring gives other results."""

import dataclasses
from typing import Any

from alexnet_jax.network import wiring

Layer = wiring.Layer
Wiring = wiring.Wiring

_POOL = wiring.Pool()
_AVERAGE = wiring.Pool(window=2, stride=2, kind="average")


def _conv(
  name: str,
  reads: str,
  features: int,
  window: int,
  padding: tuple[int, int] | None = None,
  **options: Any,
) -> Layer:
  """Makes the row of a convolution, padded to keep the size of a map."""
  return Layer(
    name=name,
    reads=reads,
    features=features,
    window=window,
    padding=padding or (window // 2, window // 2),
    **options,
  )


def rewire(
  base: Wiring,
  name: str,
  *,
  columns: int | None = None,
  without: tuple[str, ...] = (),
  **changes: dict[str, Any],
) -> Wiring:
  """Returns a copy of a wiring with some rows changed.

  Args:
    base, name: the wiring to start from, and the name of the new one.
    columns: of the new wiring; None keeps those of `base`.
    without: layers to leave out.
    **changes: layer -> {field of `Layer`: value}.
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


# The network of 2012 with the initial values of the released code: standard
# deviation .03 in conv3-5 where the paper says .01 everywhere, and biases of 1
# in conv2, conv4, conv5, fc6, fc7 (Krizhevsky et al. 2012, section 5;
# cuda-convnet, layers-145.cfg).
#
# The padding of conv1 is on one side only: windows start at pixel 0, and the
# last of 55 ends three pixels past a 224-pixel image. With 227 pixels no window
# reaches the zeros, so both sizes give 55x55.
#
#           output, 224-pixel image   after pooling   columns read
#   conv1   55 x 55 x  96             27 x 27         the image
#   conv2   27 x 27 x 256             13 x 13         own
#   conv3   13 x 13 x 384                             all
#   conv4   13 x 13 x 384                             own
#   conv5   13 x 13 x 256              6 x  6         own
#   fc6     4096                                      all
#   fc7     4096                                      all
#   fc8     1000                                      all
ALEXNET_2012 = Wiring(
  name="alexnet2012",
  columns=2,
  layers=(
    _conv(
      "conv1", "image", 96, 11, (0, 3), stride=4, normalize="column", pool=_POOL
    ),
    _conv("conv2", "own", 256, 5, normalize="column", pool=_POOL, bias=1.0),
    _conv("conv3", "all", 384, 3, kernel_std=0.03),
    _conv("conv4", "own", 384, 3, kernel_std=0.03, bias=1.0),
    _conv("conv5", "own", 256, 3, pool=_POOL, kernel_std=0.03, bias=1.0),
    Layer(name="fc6", reads="all", features=4096, dropout=True, bias=1.0),
    Layer(name="fc7", reads="all", features=4096, dropout=True, bias=1.0),
    Layer(name="fc8", reads="all", features=1000, activation="linear"),
  ),
)

# The comparison net of the paper's section 3.2, footnote: half of the maps,
# except in the last convolution (layers-145-half.cfg).
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

# The network of 2012 as one tower, with the widths of "one weird trick"
# (Krizhevsky 2014), which torchvision has, too. The rest is as in 2012: the
# padding of conv1, normalization, initial values. What torchvision computes is
# `torchvision_alexnet`. The paper's footnote has 384 maps in conv4; its
# parameter count and the released files have 256. 61,100,840 parameters.
MERGED_TOWER = rewire(
  ALEXNET_2012,
  "merged_tower",
  columns=1,
  conv1={"features": 64},
  conv2={"features": 192, "reads": "all"},
  conv4={"features": 256, "reads": "all"},
  conv5={"reads": "all"},
)

# Two columns that meet at the logits only (run 150): 160 maps per column in
# conv2, 4096 units in fc6 and 2048 in fc7.
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
# layers only, with 256 maps per column in conv3 (run 127). In those runs conv2
# also read a small copy of the image, and conv1 had 64 maps. Not so here: these
# differ from the network of 2012 only in where the columns meet.
# 61,186,408 and 60,891,624 parameters.
JOIN_AT_CONV4 = rewire(
  ALEXNET_2012, "join_at_conv4", conv3={"reads": "own"}, conv4={"reads": "all"}
)
JOIN_AT_FC = rewire(
  ALEXNET_2012, "join_at_fc", conv3={"features": 512, "reads": "own"}
)

# Four columns of 32, 64, 192, 192, 64 maps and 1024 units, the widths of run
# 129. In that run conv3 read pairs of columns, and conv2 also a small copy of
# the image; here conv3 reads all four. 62,423,528 parameters.
FOUR_COLUMN = rewire(
  ALEXNET_2012,
  "four_column",
  columns=4,
  conv1={"features": 128},
  conv3={"features": 768},
  conv4={"features": 768},
)

# The network of 2012 without one of its middle convolutions (section 7 of the
# paper: about 2 % more top-1 error each). The columns still meet at the third
# layer, and fc6 still reads 6 x 6 maps.
WITHOUT_CONV3 = rewire(
  ALEXNET_2012, "without_conv3", without=("conv3",), conv4={"reads": "all"}
)
WITHOUT_CONV4 = rewire(ALEXNET_2012, "without_conv4", without=("conv4",))
WITHOUT_CONV5 = rewire(
  ALEXNET_2012, "without_conv5", without=("conv5",), conv4={"pool": _POOL}
)

# Ablations in the authors' notebook: dropout of a fifth after conv4 (run 177),
# stochastic pooling in block 2 (run 178), no normalization in block 2 (run
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
# inside a column. With zeros where the columns did not meet it computes the
# same: see network/block_diagonal.py. 62,378,344 parameters, the number that
# AlexNet is often said to have.
BLOCK_DIAGONAL = rewire(
  ALEXNET_2012,
  "block_diagonal",
  conv2={"reads": "all"},
  conv4={"reads": "all"},
  conv5={"reads": "all"},
)

# LeNet-5 as d2l has it: sigmoids, average pooling, one channel of 28 pixels.
# Its layers have AlexNet's names, so that a layout's placements of single
# layers hold. 61,706 parameters.
LENET5 = Wiring(
  name="lenet5",
  columns=1,
  image_channels=1,
  published_size=28,
  published_classes=10,
  layers=(
    _conv("conv1", "image", 6, 5, activation="sigmoid", pool=_AVERAGE),
    _conv("conv2", "all", 16, 5, (0, 0), activation="sigmoid", pool=_AVERAGE),
    Layer(name="fc6", reads="all", features=120, activation="sigmoid"),
    Layer(name="fc7", reads="all", features=84, activation="sigmoid"),
    Layer(name="fc8", reads="all", features=10, activation="linear"),
  ),
)

# Three convolutions and the logits, for images of 32 pixels: a stand-in for the
# network of the paper's figure 1, which is not described (cuda-convnet,
# layers-18pct.cfg, without its normalization and with max pooling throughout).
FOUR_LAYER = Wiring(
  name="four_layer",
  columns=1,
  published_size=32,
  published_classes=10,
  layers=(
    _conv("conv1", "image", 32, 5, pool=_POOL),
    _conv("conv2", "all", 32, 5, pool=_POOL),
    _conv("conv3", "all", 64, 5, pool=_POOL),
    Layer(name="fc8", reads="all", features=10, activation="linear"),
  ),
)

# AlexNet as d2l has it: one column, no normalization, and a pixel of zeros on
# each side of the image, which gives maps of 54 pixels, and in the end 5 x 5.
# Introductions quote its size as that of 2012; see complexity/tables.py.
ALEXNET_D2L = rewire(
  ALEXNET_2012,
  "alexnet_d2l",
  columns=1,
  conv1={"padding": (1, 1), "normalize": "none"},
  conv2={"reads": "all", "normalize": "none"},
  conv4={"reads": "all"},
  conv5={"reads": "all"},
)

# Caffe's AlexNet (models/bvlc_alexnet/train_val.prototxt): two groups, but
# normalization over the maps of both, with a k of 1; 227 pixels and no padding
# in conv1; biases of .1 where 2012 has 1. Caffe divides its alpha of 1e-4 by
# the 5 maps. It scales dropout in training: config.network.dropout_scaling.
# 60,965,224 parameters.
_CAFFE_NORM = {"normalize": "across", "lrn": wiring.Lrn(k=1.0)}
BVLC_ALEXNET = dataclasses.replace(
  rewire(
    ALEXNET_2012,
    "bvlc_alexnet",
    conv1={"padding": (0, 0), **_CAFFE_NORM},
    conv2={"bias": 0.1, **_CAFFE_NORM},
    conv3={"kernel_std": 0.01},
    conv4={"kernel_std": 0.01, "bias": 0.1},
    conv5={"kernel_std": 0.01, "bias": 0.1},
    fc6={"kernel_std": 0.005, "bias": 0.1},
    fc7={"kernel_std": 0.005, "bias": 0.1},
  ),
  published_size=227,
)

# Caffe's reference network (models/bvlc_reference_caffenet/train_val.prototxt):
# the same, but it pools before it normalizes, and has biases of 1. 60,965,224
# parameters.
_POOL_FIRST = ("activation", "pooling", "normalization")
CAFFENET = rewire(
  BVLC_ALEXNET,
  "caffenet",
  conv1={"order": _POOL_FIRST},
  conv2={"order": _POOL_FIRST, "bias": 1.0},
  **{name: {"bias": 1.0} for name in ("conv4", "conv5", "fc6", "fc7")},
)

# torchvision's AlexNet (torchvision/models/alexnet.py): a padding of 2 on each
# side in conv1, no normalization, and dropout before fc6 and fc7, so on the
# maps of conv5. Its pooling to 6 x 6 maps does nothing at 224 pixels.
# 61,100,840 parameters.
#
# PyTorch draws kernels and biases uniformly from +-1 / sqrt(fan-in). Here
# kernels are normal with the standard deviation of that, 1 / sqrt(3 fan-in) at
# full width, and biases are 0. PyTorch scales dropout in training.
TORCHVISION_ALEXNET = rewire(
  MERGED_TOWER,
  "torchvision_alexnet",
  conv1={"padding": (2, 2), "normalize": "none", "kernel_std": 0.0303},
  conv2={"normalize": "none", "kernel_std": 0.0144, "bias": 0.0},
  conv3={"kernel_std": 0.0139},
  conv4={"kernel_std": 0.0098, "bias": 0.0},
  conv5={"kernel_std": 0.012, "bias": 0.0, "dropout": True},
  fc6={"kernel_std": 0.006, "bias": 0.0},
  fc7={"kernel_std": 0.009, "bias": 0.0, "dropout": False},
  fc8={"kernel_std": 0.009},
)

# The network of 2012 as it was run (cuda-convnet, layers-145.cfg): block 1
# normalizes and pools before its activation, so that values below 0 count in
# the energy; block 2 normalizes once more, over 5 x 5 neighbors in a map, with
# a k of 1 and a scale of .001, which the code divides by 25. In block 5 the
# order makes no difference. 60,965,224 parameters.
_ACTIVATE_LAST = ("normalization", "pooling", "activation")
SOURCE_145 = rewire(
  ALEXNET_2012,
  "source145",
  conv1={"order": _ACTIVATE_LAST},
  conv2={"map_lrn": wiring.Lrn(k=1.0, alpha=4e-5)},
  conv5={"order": _ACTIVATE_LAST},
)

# The network of Zeiler and Fergus 2013, "Visualizing and understanding
# convolutional networks", figure 3 and section 3: one column, pooling before
# normalization, kernels of .01 and biases of 0. 62,357,608 parameters.
#
# The paper gives the sizes of maps, but no padding. All of its sizes follow
# without any if the number of windows is rounded up, as cuda-convnet does: a
# pixel after the map, which a pooling does not count. Nor does it give the
# constants of the normalization; these are those of 2012.
#
#           output, 224-pixel image   after pooling
#   conv1   110 x 110 x  96           55 x 55
#   conv2    26 x  26 x 256           13 x 13
#   conv3    13 x  13 x 384
#   conv4    13 x  13 x 384
#   conv5    13 x  13 x 256            6 x  6
_ROUND_UP = (0, 1)
_ZF_BLOCK = {
  "stride": 2,
  "normalize": "across",
  "pool": wiring.Pool(padding=_ROUND_UP),
  "order": _POOL_FIRST,
}
ZFNET = Wiring(
  name="zfnet",
  columns=1,
  layers=(
    _conv("conv1", "image", 96, 7, _ROUND_UP, **_ZF_BLOCK),
    _conv("conv2", "all", 256, 5, (0, 0), **_ZF_BLOCK),
    _conv("conv3", "all", 384, 3),
    _conv("conv4", "all", 384, 3),
    _conv("conv5", "all", 256, 3, pool=_POOL),
    Layer(name="fc6", reads="all", features=4096, dropout=True),
    Layer(name="fc7", reads="all", features=4096, dropout=True),
    Layer(name="fc8", reads="all", features=1000, activation="linear"),
  ),
)

# VGG's network A (Simonyan and Zisserman 2014, table 1): eleven layers, windows
# of 3 throughout. Names are those of VGG's files. The authors initialized with
# a standard deviation of .1; here it is He scaling. 132,863,336 parameters.
_VGG = {"kernel_std": None}
_VGG_POOL = _VGG | {"pool": wiring.Pool(window=2, stride=2)}
VGG_11 = Wiring(
  name="vgg11",
  columns=1,
  layers=(
    _conv("conv1_1", "image", 64, 3, **_VGG_POOL),
    _conv("conv2_1", "all", 128, 3, **_VGG_POOL),
    _conv("conv3_1", "all", 256, 3, **_VGG),
    _conv("conv3_2", "all", 256, 3, **_VGG_POOL),
    _conv("conv4_1", "all", 512, 3, **_VGG),
    _conv("conv4_2", "all", 512, 3, **_VGG_POOL),
    _conv("conv5_1", "all", 512, 3, **_VGG),
    _conv("conv5_2", "all", 512, 3, **_VGG_POOL),
    Layer(name="fc6", reads="all", features=4096, dropout=True, **_VGG),
    Layer(name="fc7", reads="all", features=4096, dropout=True, **_VGG),
    Layer(name="fc8", reads="all", features=1000, activation="linear", **_VGG),
  ),
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
  BVLC_ALEXNET,
  CAFFENET,
  TORCHVISION_ALEXNET,
  SOURCE_145,
  ZFNET,
  VGG_11,
)


def find(name: str, *, field: str = "config.network.wiring") -> Wiring:
  """Finds a wiring by name.

  Raises:
    ValueError: there is none of that name; says to set `field`.
  """
  wirings = {candidate.name: candidate for candidate in WIRINGS}
  if name not in wirings:
    raise ValueError(
      f"unknown wiring {name!r}, expected one of {', '.join(wirings)}. "
      f"Set {field}."
    )
  return wirings[name]

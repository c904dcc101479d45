"""The named wirings. A wiring is the network: another one, other results."""

from alexnet_jax.network import wiring

Layer = wiring.Layer

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
ALEXNET_2012 = (
  Layer(
    name="conv1",
    reads="image",
    features=96,
    window=11,
    stride=4,
    padding=(0, 3),
    normalise=True,
    pool=True,
  ),
  Layer(
    name="conv2",
    reads="own",
    features=256,
    window=5,
    padding=(2, 2),
    normalise=True,
    pool=True,
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
    pool=True,
    kernel_std=0.03,
    bias=1.0,
  ),
  Layer(name="fc6", reads="all", features=4096, dropout=True, bias=1.0),
  Layer(name="fc7", reads="all", features=4096, dropout=True, bias=1.0),
  Layer(name="fc8", reads="all", features=1000, relu=False),
)

WIRINGS = {"alexnet2012": ALEXNET_2012}


def find(name: str) -> tuple[Layer, ...]:
  """The table of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in WIRINGS:
    raise ValueError(
      f"unknown wiring {name!r}, expected one of {', '.join(WIRINGS)}. "
      "Set config.network.wiring."
    )
  return WIRINGS[name]

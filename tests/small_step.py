"""A step of three layers, which compiles fast: two convolutions and fc8."""

from alexnet_jax.data import augment, statistics
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from tests import build


def make_program(layout_name):
  """On a layout of the catalog."""
  table = wirings.ALEXNET_2012
  rows = [row for row in table.layers if row.name in ("conv1", "conv2", "fc8")]
  short = wiring.Wiring(name="short", columns=2, layers=tuple(rows))
  network = wiring.make_network(
    short, width=1 / 8, image_size=35, num_classes=10, init="he"
  )
  return build.make_program(
    network,
    catalog.find(layout_name),
    augment.Augment(
      stored_size=36,
      image_size=35,
      flip=True,
      color_noise=0.1,
      statistics=statistics.PUBLISHED,
      scale=64.0,
    ),
    batch_size=8,
  )

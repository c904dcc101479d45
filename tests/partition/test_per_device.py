import dataclasses

import pytest

from alexnet_jax.data import augment, statistics
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, per_device
from alexnet_jax.program import compiled_step
from tests import build

NETWORK = wiring.make_network(wirings.ALEXNET_2012)
# Reference, section 6: millions of multiplications per image.
MACS = {
  "conv1": 105.415,
  "conv2": 223.949,
  "conv3": 149.520,
  "conv4": 112.140,
  "conv5": 74.760,
  "fc6": 37.749,
  "fc7": 16.777,
  "fc8": 4.096,
}


def test_half_of_the_network_is_what_one_gpu_held():
  found = per_device.find_shares(NETWORK, catalog.TWO_COLUMN, batch_size=128)
  # Reference, section 6: the second GPU, and here half of fc8 with its biases.
  expected = 28_434_112 + 2048 * 1000 + 1000
  assert sum(share.parameter_bytes for share in found.values()) == 4 * expected
  for name, share in found.items():
    passes = 2 if name == "conv1" else 3
    flops = 2 * passes * 128 * MACS[name] * 1e6 / 2
    assert share.flops == pytest.approx(flops, rel=1e-4)
    assert share.times == 1
  # The published map of one GPU: 55 x 55 x 48.
  assert found["conv1"].activation_bytes == 4 * 128 * 55 * 55 * 48
  assert per_device.repeated_share(found) == 0


def test_stored_shares_divide_every_kernel_and_no_bias():
  found = per_device.find_shares(NETWORK, catalog.FULLY_SHARDED, batch_size=128)
  biases = 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 1000
  expected = (60_965_224 - biases) // 2 + biases
  assert sum(share.parameter_bytes for share in found.values()) == 4 * expected


def test_what_no_axis_splits_is_repeated():
  found = per_device.find_shares(
    NETWORK, catalog.TENSOR_PARALLEL, batch_size=128
  )
  assert {name for name, share in found.items() if share.times > 1} == {"fc8"}
  whole = sum(MACS.values()) * 3 - MACS["conv1"]
  repeated = 3 * MACS["fc8"]
  assert per_device.repeated_share(found) == pytest.approx(
    repeated / (whole + repeated), rel=1e-3
  )
  alone = dataclasses.replace(catalog.ONE_DEVICE, mesh={"device": 4})
  found = per_device.find_shares(NETWORK, alone, batch_size=128)
  assert per_device.repeated_share(found) == 0.75


def test_compiler_counts_as_many_flops_but_for_padding():
  program = build.make_program(
    NETWORK,
    catalog.TWO_COLUMN,
    augment.Augment(
      stored_size=256,
      image_size=224,
      flip=True,
      color_noise=0.1,
      statistics=statistics.PUBLISHED,
    ),
    batch_size=4,
    implementations="conv3x3=direct",  # winograd has fewer products
  )
  planned = sum(share.flops for share in program.shares.values())
  compiled, _ = compiled_step.compile_step(program)
  counted = compiled.cost_analysis()["flops"]
  # It leaves out products with the zeros of padding, some 7 % in the layers of
  # 13 x 13 and 27 x 27, and adds the update and all that is no product; at this
  # small a batch that is some operations for each of 30 million parameters.
  assert 0.9 * planned < counted < 1.1 * planned

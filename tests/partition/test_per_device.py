import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import implementations, wiring
from alexnet_jax.partition import catalog, per_device, plan
from alexnet_jax.program import compiled_step
from tests import build

# Reference, section 6: millions of multiplications per image.
MACS = {"conv1": 105.415, "conv2": 223.949, "conv3": 149.520, "conv4": 112.140}
MACS |= {"conv5": 74.760, "fc6": 37.749, "fc7": 16.777, "fc8": 4.096}


def find_loads(layout):
  return per_device.find_loads(build.FULL_NETWORK, layout, batch_size=128)


def test_half_of_the_network_is_what_one_gpu_held():
  loads = find_loads(catalog.TWO_COLUMN)
  # Reference, section 6: the second GPU, and here half of fc8 with its biases.
  expected = 28_434_112 + 2048 * 1000 + 1000
  assert sum(load.parameter_bytes for load in loads.values()) == 4 * expected
  for name, load in loads.items():
    passes = 2 if name == "conv1" else 3
    flops = 2 * passes * 128 * MACS[name] * 1e6 / 2
    assert load.flops == pytest.approx(flops, rel=1e-4)
    assert load.times_computed == 1
  # The published map of one GPU: 55 x 55 x 48.
  assert loads["conv1"].activation_bytes == 4 * 128 * 55 * 55 * 48
  assert per_device.repeated_fraction(loads) == 0


def test_fsdp_divides_every_kernel_and_no_bias():
  loads = find_loads(catalog.FULLY_SHARDED)
  biases = 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 1000
  expected = (60_965_224 - biases) // 2 + biases
  assert sum(load.parameter_bytes for load in loads.values()) == 4 * expected


def test_what_no_axis_splits_is_repeated():
  loads = find_loads(catalog.TENSOR_PARALLEL)
  repeated = [name for name, load in loads.items() if load.times_computed > 1]
  assert repeated == ["fc8"]
  needed = sum(MACS.values()) * 3 - MACS["conv1"]
  repeated = 3 * MACS["fc8"]
  assert per_device.repeated_fraction(loads) == pytest.approx(
    repeated / (needed + repeated), rel=1e-3
  )
  loads = find_loads(build.with_mesh(catalog.ONE_DEVICE, device=4))
  assert per_device.repeated_fraction(loads) == 0.75


def find_arrivals(layout, network=build.FULL_NETWORK):
  routes = plan.choose_routes(network, layout, batch_size=8)
  arrivals = per_device.describe_arrivals(network, layout, routes)
  return {name: steps for name, steps in arrivals.items() if steps}


def test_arrivals_are_in_order_and_name_what_is_done_with_them():
  placement = catalog.Placement
  layout = catalog.Layout(
    name="mixed",
    mesh={"one": 1, "x": 2, "y": 2},
    conv=placement(batch=("one", "x", "y")),
    fc=placement(inputs=("x", "y", "one")),
    layers={
      "conv5": placement(outputs=("x",)),
      "fc7": placement(batch=("x",), inputs=("y",)),
      "fc8": placement(batch=("x",)),
    },
  )
  assert find_arrivals(layout) == {
    # Each device needs all images, and the channels of its column alone.
    "conv5": ("images gathered over y", "images exchanged for features over x"),
    # What y scatters are the inputs of fc7, what x scatters its images.
    "fc6": (
      "inputs: partial sums scattered to fc7's inputs over y, then scattered "
      "to fc7's images over x",
    ),
    "fc7": ("inputs: partial sums summed over y",),
  }
  # fc6 is split by inputs, fc7 by outputs; fc8 reads them where they are.
  assert find_arrivals(catalog.TWO_COLUMN) == {
    "conv3": ("features gathered over column",),
    "fc6": ("inputs: partial sums scattered over column, for fc7 to gather",),
    "fc7": ("features gathered over column",),
    "fc8": ("inputs: partial sums summed over column",),
  }


def test_maps_of_neighbors_arrive_for_a_normalization():
  network = wiring.make_network(wirings.ALEXNET_2012, normalization="across")
  arrivals = find_arrivals(catalog.TWO_COLUMN, network)
  halo = "to normalize: 2 maps of each neighbor over column"  # a window of 5
  assert arrivals["conv1"] == arrivals["conv2"] == (halo,)


def test_images_kept_are_fewer_where_partial_sums_are_scattered_over_them():
  layout = catalog.Layout(
    name="scattered",
    mesh={"x": 4},
    conv=catalog.Placement(batch=("x",)),
    fc=catalog.Placement(batch=("x",)),
    layers={"fc6": catalog.Placement(inputs=("x",))},
  )
  fc6, fc7 = (find_loads(layout)[name] for name in ("fc6", "fc7"))
  assert (fc6.images, fc6.kept_images, fc6.values) == (128, 32, 4096)
  assert (fc7.images, fc7.kept_images) == (32, 32)
  assert fc6.activation_bytes == 4 * 32 * 4096


def test_layouts_that_come_to_the_same_are_found_once():
  layouts = [
    build.with_mesh(catalog.TWO_COLUMN_DATA, data=1, column=2),
    catalog.TWO_COLUMN,
    build.with_mesh(catalog.TWO_COLUMN_DATA, data=2, column=1),
    catalog.DATA_PARALLEL,
    catalog.FULLY_SHARDED,
  ]
  found = per_device.find_distinct(build.FULL_NETWORK, layouts, batch_size=8)
  assert found == [
    catalog.TWO_COLUMN,
    catalog.DATA_PARALLEL,
    catalog.FULLY_SHARDED,
  ]


def test_padding_and_winograd_spare_multiplications():
  loads = find_loads(catalog.TWO_COLUMN)
  # In one direction. conv1: 55 windows of 11 with 3 zeros after the last pixel.
  # conv2: 27 of 5 with 1 + 2 zeros on either side; conv3: 13 of 3 with 1.
  directions = {"conv1": (602, 605), "conv2": (129, 135), "conv3": (37, 39)}
  for name, (read, taps) in directions.items():
    assert loads[name].unpadded == pytest.approx((read / taps) ** 2)
  assert loads["fc6"].unpadded == 1
  # 7 x 7 tiles of 2 x 2 outputs, each with 4 x 4 multiplications.
  sizes = build.FULL_NETWORK.sizes()
  winograd = implementations.Implementations(conv3x3="winograd")
  for passes in (2, 3):
    found = winograd.fewer_multiplications(sizes["conv3"], passes=passes)
    assert found == pytest.approx(16 * 49 / (9 * 169))


def test_compiler_counts_as_many_flops_but_for_padding():
  program = build.make_program(
    *(catalog.TWO_COLUMN, build.FULL_NETWORK, build.FULL_AUGMENTATION),
    batch_size=4,
    implementations="conv3x3=direct",  # winograd has fewer products
  )
  planned = sum(load.flops for load in program.device_loads.values())
  compiled, _ = compiled_step.compile_step(program)
  counted = compiled.cost_analysis()["flops"]
  # What follows from the padding alone, and all that is no product.
  unpadded = sum(
    load.unpadded * load.flops for load in program.device_loads.values()
  )
  assert unpadded < counted < 1.06 * unpadded
  # It leaves out products with the zeros of padding, some 7 % in the layers of
  # 13 x 13 and 27 x 27, and adds the update and all that is no product; at this
  # small a batch that is some operations for each of 30 million parameters.
  assert 0.9 * planned < counted < 1.1 * planned

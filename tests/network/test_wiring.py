import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from tests import build, reference


def test_full_size_network_has_published_sizes():
  sizes = build.FULL_NETWORK.sizes()
  sides = [sizes[f"conv{i}"].map_side for i in range(1, 6)]
  assert sides == [55, 27, 13, 13, 13]
  assert sizes["conv5"].out_side == 6
  parameters = {name: size.parameters for name, size in sizes.items()}
  assert parameters == reference.PUBLISHED_PARAMETERS
  assert sum(parameters.values()) == 60_965_224


def test_227_pixels_give_the_same_maps_as_224():
  other = wiring.make_network(wirings.ALEXNET_2012, image_size=227)
  assert other.sizes()["fc6"] == build.FULL_NETWORK.sizes()["fc6"]


# Reference, sections 1.4, 2.2 and 9, or added up by hand from its widths:
# conv1 + conv2 + conv3 + conv4 + conv5, then fc6 + fc7 + fc8.
PARAMETERS = {
  "alexnet2012": 60_965_224,
  "one_gpu": 59_798_312,
  "merged_tower": 61_100_840,
  "independent_columns": (34_944 + 384_320 + 553_344 + 663_936 + 442_624)
  + (37_756_928 + 16_781_312 + 4_097_000),
  "join_at_conv4": (34_944 + 307_456 + 442_752 + 1_327_488 + 442_624)
  + 58_631_144,
  "join_at_fc": (34_944 + 307_456 + 590_336 + 885_120 + 442_624) + 58_631_144,
  "four_column": (46_592 + 205_056 + 1_770_240 + 1_327_872 + 442_624)
  + 58_631_144,
  # Of conv4, which reads the 256 maps of conv2 in the place of conv3.
  "without_conv3": 60_965_224 - 663_936,
  "without_conv4": 60_965_224 - 663_936,
  "without_conv5": 60_965_224 - 442_624 + 6 * 6 * 128 * 4096,
  "dropout_after_conv4": 60_965_224,
  "stochastic_pool2": 60_965_224,
  "without_lrn2": 60_965_224,
  # The zeros between the columns of conv2, conv4 and conv5.
  "block_diagonal": 60_965_224
  + 25 * 96 * 256 // 2
  + 9 * 384 * (384 + 256) // 2,
  "lenet5": 61_706,
  "four_layer": (25 * 3 + 1) * 32
  + (25 * 32 + 1) * 32
  + (25 * 32 + 1) * 64
  + (3 * 3 * 64 + 1) * 10,
  # Weights without fc8 as reference section 6 has them, fc8, biases.
  "alexnet_d2l": 46_737_440 + 4_096_000 + (1_376 + 8_192 + 1_000),
}


@pytest.mark.parametrize("table", wirings.WIRINGS, ids=lambda table: table.name)
def test_wiring_has_its_published_number_of_parameters(table):
  sizes = wiring.make_network(
    table, image_size=table.published_size, num_classes=table.published_classes
  ).sizes()
  found = sum(size.parameters for size in sizes.values())
  assert found == PARAMETERS[table.name]


@pytest.mark.parametrize(
  ("table", "recorded"),
  [(wirings.JOIN_AT_CONV4, 61.09e6), (wirings.JOIN_AT_FC, 60.80e6)],
  ids=lambda value: getattr(value, "name", None),
)
def test_recorded_runs_differ_by_the_small_copy_of_the_image(table, recorded):
  # They had 64 maps in conv1, and three more in all that conv2 reads.
  table = wirings.rewire(table, "recorded", conv1={"features": 64})
  sizes = wiring.make_network(table).sizes()
  found = sum(size.parameters for size in sizes.values()) + 5 * 5 * 3 * 256
  assert abs(found - recorded) <= 0.005e6


def test_multiplications_are_the_published_ones():
  sizes = build.FULL_NETWORK.sizes()
  millions = [round(s.multiplications / 1e6, 3) for s in sizes.values()]
  convolutions = [105.415, 223.949, 149.520, 112.140, 74.760]
  assert millions == convolutions + [37.749, 16.777, 4.096]
  assert sum(s.outputs for s in sizes.values()) == 659_272


def test_one_column_is_the_network_without_groups():
  sizes = wiring.make_network(wirings.ALEXNET_2012, columns=1).sizes()
  # Reference: the same widths without groups.
  assert sum(size.parameters for size in sizes.values()) == 62_378_344


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"columns": 3}, "3 columns do not divide conv2"),
    ({"width": 0.3}, "28.8 features of the 96 of conv1"),
    ({"image_size": 60}, "for an image of 60 pixels"),
    ({"init": "xavier"}, "expected one of source, paper, he"),
    ({"activation": "gelu"}, "expected one of relu, tanh, sigmoid"),
    ({"normalization": "layer"}, "config.network.normalization"),
    ({"dropout_scaling": "both"}, "config.network.dropout_scaling"),
  ],
)
def test_bad_argument_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    wiring.make_network(wirings.ALEXNET_2012, **arguments)


def test_unknown_wiring_lists_the_known_ones():
  with pytest.raises(
    ValueError, match="'alexnet', expected one of alexnet2012, one_gpu"
  ):
    wirings.find("alexnet")


def test_stochastic_pooling_of_values_below_zero_is_refused():
  with pytest.raises(
    ValueError, match="conv2 has stochastic .* is tanh, expected relu"
  ):
    wiring.make_network(wirings.STOCHASTIC_POOL2, activation="tanh")

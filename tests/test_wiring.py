import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from tests import reference


def test_full_size_network_has_published_sizes():
  sizes = wiring.make_network(wirings.ALEXNET_2012).sizes()
  sides = [sizes[f"conv{i}"].map_side for i in range(1, 6)]
  assert sides == [55, 27, 13, 13, 13]
  assert sizes["conv5"].out_side == 6
  assert {
    name: size.parameters for name, size in sizes.items()
  } == reference.PUBLISHED_PARAMETERS
  assert sum(size.parameters for size in sizes.values()) == 60_965_224


def test_227_pixels_give_the_same_maps_as_224():
  assert (
    wiring.make_network(wirings.ALEXNET_2012, image_size=227).sizes()["fc6"]
    == (wiring.make_network(wirings.ALEXNET_2012).sizes()["fc6"])
  )


def test_one_column_is_the_network_without_groups():
  sizes = wiring.make_network(wirings.ALEXNET_2012, columns=1).sizes()
  # Reference: the same widths without groups.
  assert sum(size.parameters for size in sizes.values()) == 62_378_344


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"columns": 3}, "3 columns do not divide conv2"),
    ({"columns": 0}, "config.network.columns"),
    ({"width": 0.3}, "28.8 features of the 96 of conv1"),
    ({"image_size": 60}, "for an image of 60 pixels"),
    ({"dropout_rate": 1.0}, "config.network.dropout_rate"),
    ({"num_classes": 0}, "config.network.num_classes"),
    ({"init": "xavier"}, "expected 'source' or 'he'"),
  ],
)
def test_bad_argument_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    wiring.make_network(wirings.ALEXNET_2012, **arguments)


def test_unknown_wiring_lists_the_known_ones():
  with pytest.raises(
    ValueError, match="'alexnet', expected one of alexnet2012"
  ):
    wirings.find("alexnet")

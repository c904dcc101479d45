import dataclasses

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
  # As published with the files of Caffe and torchvision.
  "bvlc_alexnet": 60_965_224,
  "caffenet": 60_965_224,
  "torchvision_alexnet": 61_100_840,
  "source145": 60_965_224,
  # Tables of 2013's networks that others have made; the paper has no count.
  "zfnet": (14_208 + 614_656 + 885_120 + 1_327_488 + 884_992) + 58_631_144,
  "vgg11": 132_863_336,  # torchvision's VGG11_Weights
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
    ({"width": 0.3}, "28.8 features of the 96 of conv1, .*layers.conv1.feat"),
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


def test_constants_of_normalization_are_those_of_the_rows_or_of_a_config():
  def constants(table, **options):
    network = wiring.make_network(table, image_size=227, **options)
    return [
      (layer.lrn.k, layer.lrn.alpha)
      for layer in network.layers
      if layer.normalize != "none"
    ]

  assert constants(wirings.ALEXNET_2012) == [(2.0, 2e-5)] * 2
  assert constants(wirings.CAFFENET) == [(1.0, 2e-5)] * 2
  assert constants(wirings.CAFFENET, lrn_k=3.0) == [(3.0, 2e-5)] * 2
  assert constants(wirings.CAFFENET, lrn_alpha=1e-4) == [(1.0, 1e-4)] * 2


def test_overrides_keep_what_they_do_not_name():
  network = wiring.make_network(
    wirings.ZFNET, pooling=(2, 2), normalization="map", activation="tanh"
  )
  row = network.layer("conv1")
  assert row.pool == wiring.Pool(window=2, stride=2, padding=(0, 1))
  assert (row.normalize, row.activation) == ("map", "tanh")
  assert row.order == ("activation", "pooling", "normalization")
  assert network.layer("conv3").normalize == "none"
  # The second normalization of the released code goes with the first.
  for wanted in ("none", "batch", "map"):
    other = wiring.make_network(wirings.SOURCE_145, normalization=wanted)
    assert other.layer("conv2").map_lrn is None
  across = wiring.make_network(wirings.SOURCE_145, normalization="across")
  assert across.layer("conv2").map_lrn.k == 1.0


def test_halo_is_half_a_window():
  rows = [
    wiring.Layer(
      name="a", reads="image", features=8, window=3, normalize=kind, lrn=lrn
    )
    for kind, lrn in (
      *(("across", wiring.Lrn()), ("across", wiring.Lrn(size=7))),
      *(("column", wiring.Lrn()), ("map", wiring.Lrn())),
    )
  ]
  assert [row.halo for row in rows] == [2, 3, 2, 0]


# Five layers with names of their own; each case below changes one.
OWN = wiring.Wiring(
  name="own",
  columns=2,
  layers=(
    wiring.Layer(
      name="stem", reads="image", features=8, window=3, pool=wiring.Pool()
    ),
    wiring.Layer(
      name="deep", reads="own", features=8, window=3, normalize="column"
    ),
    wiring.Layer(name="hidden", reads="all", features=16, dropout=True),
    wiring.Layer(name="other", reads="own", features=16),
    wiring.Layer(name="top", reads="all", features=10, activation="linear"),
  ),
)


def test_own_wiring_is_accepted():
  network = wiring.make_network(OWN, image_size=32, num_classes=10)
  assert [layer.kind for layer in network.layers] == ["conv"] * 2 + ["fc"] * 3


@pytest.mark.parametrize(
  ("layer", "changes", "message"),
  [
    ("stem", {"name": "2nd"}, "name of a layer is '2nd', expected a Python id"),
    ("stem", {"name": "_stem"}, "'_stem', expected .* begins with a letter"),
    ("stem", {"name": "lambda"}, "'lambda', expected a Python identifier"),
    ("stem", {"name": 3}, "is 3, expected a Python identifier"),
    ("stem", {"name": "loss"}, "'loss', expected a name that is not reserved"),
    ("stem", {"name": "mesh"}, "'mesh', expected a name that is not reserved"),
    ("deep", {"name": "stem"}, "'stem', expected a name that no layer before"),
    ("stem", {"reads": "all"}, "stem.reads is 'all', and it is the first .*"),
    ("deep", {"reads": "image"}, "deep.reads is 'image', and it is after stem"),
    ("deep", {"reads": "both"}, "deep.reads is 'both', expected one of image"),
    ("deep", {"features": 0}, "deep.features is 0, expected an integer of 1"),
    ("deep", {"features": 8.0}, "deep.features is 8.0, expected an integer"),
    ("deep", {"features": True}, "deep.features is True, expected an integer"),
    ("deep", {"window": 3.0}, "deep.window is 3.0, expected an integer of 0"),
    ("deep", {"stride": 0}, "deep.stride is 0, .* 1 or more. Write stride=1"),
    ("deep", {"padding": 1}, r"deep.padding is 1, .* Write padding=\(1, 1\)"),
    ("deep", {"padding": (0, -1)}, r"deep.padding is \(0, -1\), expected two"),
    ("deep", {"padding": (0, 3)}, "deep.padding is .*a window of 3, .* than 3"),
    ("deep", {"activation": "gelu"}, "deep.activation is 'gelu', expected one"),
    ("deep", {"normalize": "layer"}, "deep.normalize is 'layer', expected one"),
    (
      "deep",
      {"lrn": wiring.Lrn(size=4)},
      "deep.lrn.size is 4, expected an odd",
    ),
    (
      "deep",
      {"lrn": wiring.Lrn(k=0.0)},
      "deep.lrn.k is 0.0, expected a number",
    ),
    ("deep", {"lrn": None}, "deep.lrn is None, expected an Lrn"),
    (
      *("stem", {"map_lrn": wiring.Lrn()}),
      "stem.map_lrn follows .* but normalize is 'none', expected column or",
    ),
    ("deep", {"pool": (3, 2)}, r"deep.pool is \(3, 2\), expected None or a P"),
    (
      *("deep", {"pool": wiring.Pool(window=2, padding=(2, 0))}),
      r"deep.pool.padding is \(2, 0\) with a window of 2, .* less than 2",
    ),
    (
      *("deep", {"pool": wiring.Pool(kind="median")}),
      "deep.pool.kind is 'median', expected one of max, average, stochastic",
    ),
    (
      *("deep", {"order": ("pooling", "activation")}),
      "deep.order is .*, expected the words activation, normalization, pooling",
    ),
    (
      "deep",
      {
        "pool": wiring.Pool(kind="stochastic"),
        "order": ("normalization", "pooling", "activation"),
      },
      "deep.order is .* stochastic .* the activation before the pooling",
    ),
    ("deep", {"kernel_std": -0.1}, "deep.kernel_std is -0.1, expected None or"),
    ("deep", {"bias": float("nan")}, "deep.bias is nan, expected a finite"),
    ("deep", {"dropout": 0.5}, "deep.dropout is 0.5, expected True or False"),
    ("deep", {"dropout_rate": 1.0}, "deep.dropout_rate is 1.0, expected None"),
    ("hidden", {"stride": 2}, "hidden.stride is 2, but its window is 0, .* 1."),
    ("hidden", {"padding": (1, 1)}, "hidden.padding is .*fully connected"),
    ("hidden", {"pool": wiring.Pool()}, "hidden.pool is .*fully connected"),
    (
      "hidden",
      {"normalize": "across"},
      "hidden.normalize is 'across', but its",
    ),
    ("other", {"window": 3}, "other.window is 3, and it reads hidden, which"),
    ("hidden", {"features": 9}, "2 columns do not divide hidden"),
    (
      "top",
      {"activation": "relu"},
      "top.activation is 'relu', but it is the l",
    ),
    ("top", {"dropout": True}, "top.dropout is True, but it is the last layer"),
    ("top", {"normalize": "batch"}, "top.normalize is 'batch', but .* last"),
    ("top", {"reads": "own"}, "top.reads is 'own', but it is the last layer"),
  ],
)
def test_wrong_row_is_refused_in_one_line(layer, changes, message):
  table = wirings.rewire(OWN, "own", **{layer: changes})
  with pytest.raises(ValueError, match=message) as error:
    wiring.make_network(table, image_size=32, num_classes=10)
  assert "\n" not in str(error.value)
  assert any(word in str(error.value) for word in ("Write ", "Set "))


def test_long_value_is_shortened():
  table = dataclasses.replace(OWN, layers=[*OWN.layers] * 9)
  with pytest.raises(ValueError, match="layers is .*, expected a t") as error:
    wiring.check(table)
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"layers": ()}, r"layers is \(\), expected a tuple of one Layer or more"),
    ({"layers": OWN.layers[0]}, "layers is Layer.*, expected a tuple"),
    ({"layers": ("conv1",)}, r"layers is \('conv1',\), expected a tuple"),
    ({"layers": OWN.layers[:2]}, "deep.window is 3, but it is the last layer"),
    ({"columns": 0}, "wiring 'own': columns is 0, expected an integer of 1"),
    ({"columns": 3}, "3 columns do not divide stem"),
    ({"image_channels": 4}, "image_channels is 4, expected 1 or 3"),
    ({"name": None}, "name is None, expected a word"),
  ],
)
def test_wrong_wiring_is_refused_in_one_line(changes, message):
  table = dataclasses.replace(OWN, **changes)
  with pytest.raises(ValueError, match=message) as error:
    wiring.make_network(table, image_size=32, num_classes=10)
  assert "\n" not in str(error.value)


def test_override_that_a_row_cannot_follow_is_refused():
  table = wirings.rewire(OWN, "own", hidden={"normalize": "batch"})
  with pytest.raises(ValueError, match="hidden.normalize is 'across', but its"):
    wiring.make_network(table, image_size=32, normalization="across")
  with pytest.raises(ValueError, match="padding is .* with a window of 1"):
    wiring.make_network(wirings.ZFNET, pooling=(1, 1))
  with pytest.raises(
    ValueError, match="conv1.lrn.k is -1.0, expected a number"
  ):
    wiring.make_network(wirings.ALEXNET_2012, lrn_k=-1.0)


def test_order_is_split_at_the_pooling():
  for order, before, after in (
    ("activation normalization pooling", "activation normalization", ""),
    ("activation pooling normalization", "activation", "normalization"),
    ("pooling activation normalization", "", "activation normalization"),
  ):
    row = wiring.Layer(
      **{"name": "a", "reads": "all", "features": 4, "window": 3},
      pool=wiring.Pool(),
      order=tuple(order.split()),
    )
    assert row.split_order() == (tuple(before.split()), tuple(after.split()))
    # Without pooling nothing comes after it.
    plain = dataclasses.replace(row, pool=None)
    parts = tuple(part for part in order.split() if part != "pooling")
    assert plain.split_order() == (parts, ())

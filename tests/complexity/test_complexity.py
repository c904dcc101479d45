"""Sizes of networks, three times counted, against published ones."""

import dataclasses
import json

import numpy as np
import pytest

from alexnet_jax.complexity import counts, tables
from alexnet_jax.network import catalog, wiring
from tests import processes, reference

# Reference, section 6; the millions there are rounded to the third digit.
ALEXNET_MILLIONS = [105.415, 223.949, 149.520, 112.140, 74.760]  # conv1 ...
ALEXNET_MILLIONS += [37.749, 16.777, 4.096]  # fc6, fc7, fc8
ALEXNET_OUTPUTS = [290_400, 186_624, 64_896, 64_896, 43_264, 4_096, 4_096, 1000]
LENET = {  # parameters, MAC
  "conv1": (156, 117_600),
  "conv2": (2_416, 240_000),
  "fc6": (48_120, 48_000),
  "fc7": (10_164, 10_080),
  "fc8": (850, 840),
}


@pytest.fixture(scope="module")
def alexnet():
  return counts.count(counts.make_published(catalog.ALEXNET_2012))


@pytest.fixture(scope="module")
def lenet():
  return counts.count(counts.make_published(catalog.LENET5))


def test_alexnet_has_its_published_counts_three_times(alexnet):
  assert not alexnet.disagreements
  published = reference.PUBLISHED_PARAMETERS
  assert [layer.layer for layer in alexnet.layers] == [*published]
  for layer, millions in zip(alexnet.layers, ALEXNET_MILLIONS, strict=True):
    assert layer.parameters == published[layer.layer]
    assert layer.program_parameters == published[layer.layer]
    assert round(layer.multiplications / 1e6, 3) == millions
    assert round(layer.program_multiplications / 1e6, 3) == millions
  assert [layer.outputs for layer in alexnet.layers] == ALEXNET_OUTPUTS
  assert alexnet.total("parameters") == 60_965_224
  assert round(alexnet.total("program_multiplications") / 1e6, 3) == 724.407
  assert alexnet.total("outputs") == 659_272


def test_lenet_has_its_published_counts_three_times(lenet):
  assert not lenet.disagreements
  for layer in lenet.layers:
    found = (layer.program_parameters, layer.program_multiplications)
    assert found == LENET[layer.layer]
  assert lenet.total("parameters") == 61_706
  assert lenet.total("multiplications") == 416_520


def test_xla_leaves_out_the_taps_that_fall_on_padding(alexnet):
  for name, side, window, stride, padding, channels in (
    ("conv1", 224, 11, 4, (0, 3), 3 * 96),
    ("conv2", 27, 5, 1, (2, 2), 48 * 256),
    ("conv4", 13, 3, 1, (1, 1), 192 * 384),
  ):
    image = np.pad(np.ones((side, side), int), padding)
    taps = sum(
      int(image[y : y + window, x : x + window].sum())
      for y in range(0, image.shape[0] - window + 1, stride)
      for x in range(0, image.shape[1] - window + 1, stride)
    )
    found = next(layer for layer in alexnet.layers if layer.layer == name)
    # To the last digit: they have less than 24 significant bits.
    assert found.xla_flops == 2 * taps * channels
    outside = found.multiplications_of_padding
    assert found.multiplications - outside == taps * channels


def test_remarks_have_the_published_shares(alexnet):
  first, second = (32_531_112, 364_251_408), (28_434_112, 360_155_408)
  assert alexnet.columns_of_2012 == [first, second]
  text = " ".join(tables.remarks(alexnet))
  for figure in (
    *("1.449 GFLOP", "3.8% of the parameters", "91.9% of the MAC", "5.0e17"),
    "32,531,112 parameters and 364.3 M MAC",
    "28,434,112 parameters and 360.2 M MAC",
    # Half of all but fc8's biases, which both devices have.
    f"{(60_965_224 - 1000) // 2 + 1000:,} parameters and 362.2 M MAC per "
    "device",
  ):
    assert figure in text


@pytest.mark.parametrize(
  ("table", "columns", "parameters", "millions"),
  [  # Reference, sections 1.4, 6 and 9.
    (catalog.ONE_GPU, None, 59_798_312, 391.5),
    (catalog.MERGED_TOWER, None, 61_100_840, 714.2),
    (catalog.ALEXNET_2012, 1, 62_378_344, 1135.3),
  ],
  ids=["one_gpu", "merged_tower", "without columns"],
)
def test_other_networks_have_their_published_sums(
  table, columns, parameters, millions
):
  sizes = wiring.make_network(table, columns=columns).sizes().values()
  assert sum(size.parameters for size in sizes) == parameters
  assert round(sum(x.multiplications for x in sizes) / 1e6, 1) == millions


def test_claim_has_what_is_quoted_and_what_it_is(alexnet, lenet):
  slides = counts.make_published(catalog.ALEXNET_D2L)
  assert tables.count_as_slides(slides) == (46_737_440, 1_005_849_728)
  assert tables.count_as_slides(lenet.network) == (60_630, 415_680)
  text = " ".join(tables.explain(alexnet, lenet, slides))
  for figure in (
    *("quote AlexNet as 250 times the computation and 10 times", "61,706"),
    *("1,739 times the multiply-acc", "988 times the parameters", "416,520"),
    *("46,737,440 weights", "60,630 weights", "1 G / 4 M gives the 250"),
    *("46 M / 0.6 M gives 77", "771 times the weights", "2,420 times"),
  ):
    assert figure in text


def test_disagreement_is_named(lenet):
  first, *others = lenet.layers
  for field, message in (
    ("program_parameters", "conv1 has 157 parameters in the program, 156 by"),
    ("program_multiplications", "conv1 has 117,601 MAC in the program"),
    ("xla_flops", "conv1 has 215,473 FLOP by XLA, 215,472 by the table"),
  ):
    wrong = dataclasses.replace(first, **{field: getattr(first, field) + 1})
    count = dataclasses.replace(lenet, layers=(wrong, *others))
    assert any(message in line for line in tables.verdict(count))
  count = dataclasses.replace(lenet, outside=7)
  assert count.disagreements == ["the program has 7 MAC in no layer"]


def test_own_names_are_counted_and_compared_as_any_others(lenet):
  Layer = wiring.Layer
  table = wiring.Wiring(
    name="own",
    columns=2,
    layers=(
      Layer(name="stem", reads="image", features=4, window=3, padding=(0, 2)),
      Layer(name="sum", reads="own", features=6),
      Layer(name="fc8", reads="all", features=10, activation="linear"),
    ),
  )
  network = wiring.make_network(table, image_size=7, num_classes=10)
  count = counts.count(network)
  assert not count.disagreements
  # 7 x 7 outputs that read 3 maps; 49 positions of 2 maps each; 6 units.
  parameters = [(27 + 1) * 4, (49 * 2 + 1) * 6, 6 * 10 + 10]
  assert [layer.parameters for layer in count.layers] == parameters
  text = " ".join(tables.remarks(count))
  assert "fc8 entirely on the first" in text and "splits fc8" in text
  columns = tables.compare({"own": count, "lenet": lenet}).columns
  names, own, _, of_lenet = (list(column.cells) for column in columns)
  assert names[:4] == ["parameters", "  stem", "  sum", "  fc8"]
  assert own[1:4] == [f"{number:,}" for number in parameters]
  total = names.index("  sum", 3)
  assert own[total] == f"{sum(parameters):,}"
  assert of_lenet[2:4] == ["-", "850"] and of_lenet[total] == "61,706"


@pytest.mark.slow
@pytest.mark.parametrize("table", catalog.WIRINGS, ids=lambda table: table.name)
def test_every_wiring_is_counted_alike_three_times(table):
  assert not counts.count(counts.make_published(table)).disagreements


@pytest.mark.slow
def test_command_shows_and_writes_all(tmp_path):
  file = tmp_path / "counts.json"
  command = ["python", "-m", "alexnet_jax.complexity", f"--json={file}"]
  command += ["--config=configs/one_device.py:imagenet"]
  done = processes.run([*command, "--config.network.columns=1"], tmp_path)
  assert done.code == 0, done.errors
  for figure in ("60,965,224", "724,406,816", "659,272", "1,739 times"):
    assert figure in done.out
  found = json.loads(file.read_text())
  assert list(found) == ["one_device-imagenet", "alexnet2012", "lenet5"]
  assert found["one_device-imagenet"]["parameters"] == 62_378_344
  assert found["lenet5"]["multiplications"] == 416_520
  assert not any(counted["disagreements"] for counted in found.values())

import types

import numpy as np
import pytest

from alexnet_jax.figures import charts
from alexnet_jax.network import catalog, wiring
from alexnet_jax.report import kernels
from tests import build


def make_run(table=catalog.ALEXNET_2012, *, stds=(100.0, 20.0, 9.0), seed=0):
  """Makes what the section reads of a run: smooth kernels and noise.

  The first column has no color.
  """
  network = build.make_network(table, width=1 / 2)
  layer = network.layers[0]
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=network.sizes()[layer.name].kernel)
  if layer.kind == "conv":
    side, maps = layer.window, layer.features
    places = np.arange(side) / side
    smooth = np.cos(3 * places[:, None, None] + 6 * rng.uniform(size=maps))
    kernel *= np.arange(maps) % 3 == 0  # two of three are learned
    kernel += 0.2 * rng.normal(size=kernel.shape)
    colors = rng.normal(size=(kernel.shape[2], maps))
    colors[:, : maps // network.columns] = 1
    kernel += 3 * smooth[:, :, None] * colors * (np.arange(maps) % 3 > 0)
  augmentation = types.SimpleNamespace(
    color_order="rgb",
    statistics=types.SimpleNamespace(stds=stds),
  )
  return types.SimpleNamespace(
    network=network,
    parameters={layer.name: {"kernel": kernel.astype(np.float32)}},
    program=types.SimpleNamespace(augmentation=augmentation),
  )


def test_columns_that_differ_in_color_are_named():
  made = kernels.make_section(make_run())
  assert "48 kernels of 11 x 11 pixels, 24 in each of 2 columns" in made.text[0]
  assert "32 of them are learned" in made.text[0]
  assert "more than chance in share of color." in made.text[1]
  drawn, measured, table = made.parts
  assert (drawn.name, measured.name) == ("kernels", "kernel_measures")
  assert "share of color in column 0, 1: 0." in drawn.alternative
  assert table.rows[0] == ["learned kernels", "16", "16", "", ""]
  for one in (table, measured.table):
    assert {len(row) for row in one.rows} == {len(one.header)}
  assert len(measured.table.rows) == 48


@pytest.mark.parametrize(
  ("table", "words"),
  [
    (catalog.ONE_GPU, "24 kernels of 11 x 11 pixels. "),
    (catalog.FOUR_COLUMN, "in each of 4 columns"),
    (catalog.LENET5, "kernels of 5 x 5 pixels. "),
  ],
  ids=lambda value: getattr(value, "name", ""),
)
def test_networks_of_any_columns_and_channels_have_a_section(table, words):
  made = kernels.make_section(make_run(table))
  assert words in made.text[0]
  columns = table.columns
  assert len(made.parts[0].figure.axes) == columns
  assert len(made.parts) == (3 if columns > 1 else 2)
  assert ("color" in made.parts[0].alternative) == (table != catalog.LENET5)


def test_gray_pictures_are_said_to_be_gray(tmp_path):
  made = kernels.make_section(make_run(stds=(80.0, 0.0, 0.0)))
  assert "The pictures of this run are gray" in made.text[0]
  assert not [row for row in made.parts[2].rows if "color" in row[0]]
  for drawn in made.parts[:2]:
    path = tmp_path / f"{drawn.name}.svg"
    charts.save(drawn.figure, str(path))
    assert path.stat().st_size < 200_000


def test_noise_and_layers_without_kernels_are_said_to_be_so():
  run = make_run()
  kernel = np.random.default_rng(0).normal(size=(11, 11, 3, 48))
  run.parameters["conv1"]["kernel"] = kernel.astype(np.float32)
  made = kernels.make_section(run)
  assert "None of them is learned" in made.text[0]
  assert "cannot be said" in made.text[1]
  assert [part.name for part in made.parts] == ["kernels"]
  row = wiring.Layer(name="fc8", reads="image", features=8, activation="linear")
  table = wiring.Wiring(name="fc", columns=1, layers=(row,))
  made = kernels.make_section(make_run(table))
  assert made.text == ["fc8 is fully connected: it has no kernels to be shown."]
  assert not made.parts

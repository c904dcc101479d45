"""The section on one picture shows every layer of any network."""

import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.data import pictures as pictures_lib
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.report import layers
from tests import build, small_sets, stored_run


class FakeRun:
  """A run whose layers compute noise."""

  def __init__(self, network, *, stored_size):
    self.network = network
    self._size = stored_size
    rng = np.random.default_rng(0)
    self.values = {
      name: rng.normal(size=(size.map_side, size.map_side, features))
      for name, size in network.sizes().items()
      for features in [network.layer(name).features]
    }

  def read_pictures(self, images):
    return pictures_lib.read_pictures(images, side=self._size)

  def activations_of_layers(self, images, names, pooled):
    assert not pooled
    found = {}
    for name in names:
      values = self.values[name]
      found[name] = (values if values.shape[0] > 1 else values[0, 0])[None]
    return found


def make_network(columns):
  table = wirings.rewire(wirings.ALEXNET_2012, f"columns{columns}")
  return wiring.make_network(
    table, width=1 / 8, image_size=67, num_classes=10, columns=columns
  )


@pytest.mark.parametrize("columns", [2, *build.slow(1, 4)])
def test_table_has_a_row_for_each_column_of_each_layer(columns):
  network = make_network(columns)
  run = FakeRun(network, stored_size=72)
  (picture,) = small_sets.tiles(1, side=90)
  made = layers.make_section(run, picture, "a.png")
  (drawing,) = made.parts
  assert drawing.kind == "png" and "a.png" in drawing.caption
  table = drawing.table
  assert {len(row) for row in table.rows} == {len(table.header)}
  names = [row.name for row in network.layers]
  # The logits belong to no column.
  expected = [name for name in names[:-1] for _ in range(columns)] + names[-1:]
  assert [row[0] for row in table.rows] == expected
  mean = table.header.index("mean")
  for column, values in enumerate(
    np.split(run.values["conv2"], columns, axis=-1)
  ):
    row = table.rows[columns + column]
    assert float(row[mean]) == pytest.approx(values.mean(), rel=0.01)


def test_picture_is_shown_as_the_first_layer_reads_it():
  run = FakeRun(make_network(2), stored_size=72)
  (picture,) = small_sets.tiles(1, side=72)
  crop = layers.find_crop(run, picture)
  np.testing.assert_array_equal(crop, picture[2:69, 2:69])


@pytest.mark.parametrize(
  ("table", "fields"),
  [
    (wirings.ALEXNET_2012, {"network.normalization": "batch"}),
    (wirings.ALEXNET_2012, {"network.columns": 4, "network.width": 1 / 8}),
    (wirings.LENET5, {"network.width": 1.0}),
  ],
  ids=["batch_norm", "four_columns", "lenet5"],
)
@pytest.mark.slow
def test_section_of_a_stored_run(table, fields, tmp_path):
  stored_run.write(tmp_path, stored_run.make_config(table, **fields))
  run = alexnet_jax.load(tmp_path)
  (picture,) = small_sets.tiles(1, side=100)
  (drawing,) = layers.make_section(run, picture, "a.png").parts
  zeros = drawing.table.header.index("zeros")
  columns = run.network.columns
  assert len(drawing.table.rows) == columns * (len(table.layers) - 1) + 1
  computed = run.activations_of_layers(
    picture, [row.name for row in table.layers], pooled=False
  )
  for name, values in computed.items():
    rows = [row for row in drawing.table.rows if row[0] == name]
    of_columns = np.split(values[0], len(rows), axis=-1)
    for row, one in zip(rows, of_columns, strict=True):
      assert row[zeros] == f"{(one == 0).mean():.1%}"

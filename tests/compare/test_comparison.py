import dataclasses
import re
from xml.etree import ElementTree

import pytest

from alexnet_jax.cli import command
from alexnet_jax.compare import chart, comparison
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import price
from tests import build

WORKLOAD = price.Workload(network=build.FULL_NETWORK, batch_size=128)
PARAMETERS = 60_965_224


def at(batch_size):
  return dataclasses.replace(WORKLOAD, batch_size=batch_size)


def row(layout, batch_size, **mesh):
  layout = build.with_mesh(layout, **(mesh or layout.mesh))
  return comparison.make_row(at(batch_size), layout)


def find_traffic(*layouts, batch_size=128):
  return comparison.find_traffic(at(batch_size), layouts)


def test_two_columns_send_an_eighth_of_data_parallelism_at_batch_128():
  two_column = row(catalog.TWO_COLUMN, 128)
  data_parallel = row(catalog.DATA_PARALLEL, 128)
  # Reference, section 6, minimum: both directions of conv3, fc6, fc7, and the
  # sum of 1,000 logits, which a ring sends twice; each device sends half.
  elements = 128 * (2 * (43_264 + 4_096 + 4_096) // 2 + 1_000)
  assert two_column.planned_bytes == 4 * elements
  # The loss, the errors and the count: four numbers, of which half go twice.
  assert data_parallel.planned_bytes == 4 * (PARAMETERS + 4)
  ratio = data_parallel.planned_bytes / two_column.planned_bytes
  assert ratio == pytest.approx(9.08, abs=0.01)


def test_two_columns_and_data_parallelism_are_equal_at_a_batch_of_1162():
  lines = find_traffic(catalog.TWO_COLUMN, catalog.DATA_PARALLEL)
  (equal,) = comparison.find_overtakings(lines)
  assert equal.below.layouts == (catalog.TWO_COLUMN,)
  assert equal.above.layouts == (catalog.DATA_PARALLEL,)
  expected = PARAMETERS / (43_264 + 4_096 + 4_096 + 1_000)
  assert equal.batch_size == pytest.approx(expected, rel=1e-5)


def test_one_weird_trick_on_eight_devices_at_batch_1024():
  one_weird_trick = row(catalog.ONE_WEIRD_TRICK, 1024, data=1, model=8)
  data_parallel = row(catalog.DATA_PARALLEL, 1024, data=8)
  convolutions = PARAMETERS - 37_752_832 - 16_781_312 - 4_097_000
  # Seven of eight parts: of conv5's outputs, those of one's own images, an
  # eighth; sums of fc6, and features of fc6, there and back; twice the logits,
  # twice the gradients of the convolutions; and four numbers.
  per_image = 2 * (9_216 / 8 + 4_096 + 4_096) + 2 * 1_000
  elements = (1024 * per_image + 2 * convolutions) * 7 / 8
  assert one_weird_trick.planned_bytes == pytest.approx(4 * elements, rel=1e-6)
  gradients = pytest.approx(4 * 2 * PARAMETERS * 7 / 8, rel=1e-6)
  assert data_parallel.planned_bytes == gradients
  ratio = data_parallel.planned_bytes / one_weird_trick.planned_bytes
  assert ratio == pytest.approx(4.72, abs=0.01)


def test_overtaking_is_the_least_where_the_lowest_line_changes():
  one_weird_trick = build.with_mesh(catalog.ONE_WEIRD_TRICK, data=1, model=2)
  lines = find_traffic(
    catalog.TWO_COLUMN, catalog.DATA_PARALLEL, one_weird_trick
  )

  def find_lowest(batch_size):
    return min(lines, key=lambda line: line.at(batch_size))

  found = comparison.find_overtakings(lines)
  assert [one.least for one in found] == [True, False, True]
  for one in found:
    lowest = find_lowest(one.batch_size - 1), find_lowest(one.batch_size + 1)
    assert (lowest == (one.below, one.above)) == one.least


def test_layouts_that_send_the_same_share_a_line():
  lines = find_traffic(catalog.DATA_PARALLEL, catalog.FULLY_SHARDED)
  (line,) = lines
  assert line.layouts == (catalog.DATA_PARALLEL, catalog.FULLY_SHARDED)
  assert comparison.find_overtakings(lines) == []


def test_line_is_that_of_the_choices_at_its_batch():
  # fc6 alone is split: sums of partial results at a small batch, at a large one
  # pieces of the result, for which the gradients of fc7 have to be summed.
  layout = layout_lib.Layout(
    name="fc6_split",
    mesh={"model": 2},
    layers={
      "fc6": layout_lib.Placement(features=("model",)),
      "fc8": layout_lib.Placement(batch=("model",)),
    },
  )
  lines = []
  for batch_size in (128, 65_536):
    (line,) = find_traffic(layout, batch_size=batch_size)
    planned = row(layout, batch_size).planned_bytes
    assert line.at(batch_size) == pytest.approx(planned, rel=1e-12)
    lines.append(line)
  assert lines[0].at(65_536) > lines[1].at(65_536)
  assert lines[0].at(128) < lines[1].at(128)


def test_meshes_that_come_to_the_same_are_listed_once_by_the_plainest_name():
  def names(*layouts):
    found = comparison.find_layouts(at(8), layouts, 4)
    return [(layout.name, *layout.mesh.values()) for layout in found]

  one_weird_trick = [("one_weird_trick", 1, 4), ("one_weird_trick", 2, 2)]
  data_parallel = ("data_parallel", 4)
  assert names(
    catalog.ONE_DEVICE, catalog.DATA_PARALLEL, catalog.ONE_WEIRD_TRICK
  ) == [data_parallel, *one_weird_trick]
  found = names(catalog.ONE_WEIRD_TRICK, catalog.DATA_PARALLEL)
  assert found == [*one_weird_trick, data_parallel]
  assert ("one_weird_trick", 4, 1) in names(catalog.ONE_WEIRD_TRICK)
  # Three axes, of which one or two have one device; with one along `model`,
  # two_column_2d is two_column_data.
  found = names(catalog.TWO_COLUMN_DATA, catalog.TWO_COLUMN_2D)
  assert found == [
    *(("two_column_data", 2, 2), ("two_column_data", 4, 1)),
    *(("two_column_2d", 1, 1, 4), ("two_column_2d", 1, 2, 2)),
    ("two_column_2d", 2, 1, 2),
  ]
  # Although its fc7 is split by inputs, were there something to add.
  found = names(catalog.DATA_PARALLEL, catalog.TENSOR_PARALLEL)
  assert found == [data_parallel, ("tensor_parallel", 2, 2)]


def test_each_mesh_of_a_layout_has_a_line():
  meshes = [
    build.with_mesh(catalog.TWO_DIMENSIONAL, data=data, x=x, y=8 // data // x)
    for data, x in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4))
  ]
  lines = [line for line in make_figure(*meshes).lines if line.is_dashed()]
  assert len(lines) == len(meshes) - 1  # one is solid


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_chart_is_drawn(tmp_path, suffix):
  path = tmp_path / f"chart.{suffix}"
  name = "_$\\none$ <b> -- [v1]"  # no formula, hidden label or tag
  own = dataclasses.replace(catalog.DATA_PARALLEL, name=name)
  traffic = {2: find_traffic(catalog.TWO_COLUMN, own)}
  options = {"batch_sizes": [128], "network": "x", "exchange_dtype": "float32"}
  chart.draw(traffic, **options, path=str(path))
  assert path.stat().st_size > 10_000
  if suffix == "svg":  # each text is also a comment
    assert ElementTree.parse(path)
    shown = path.read_text()
    assert "_$\\none$ &lt;b&gt; - - [v1] (data=2) -->" in shown


def make_figure(*layouts, batch_sizes=(128,)):
  made = chart.to_figure(
    {2: find_traffic(*layouts)},
    batch_sizes=batch_sizes,
    network="x",
    exchange_dtype="float32",
  )
  made.draw_without_rendering()
  return made.axes[0]


def renamed(layout, name):
  return dataclasses.replace(layout, name=name)


def test_layout_has_its_color_in_every_chart():
  own = renamed(catalog.TENSOR_PARALLEL, "mine")
  colors = {}
  for layouts in (
    (catalog.TWO_COLUMN,),
    (catalog.DATA_PARALLEL,),
    (own,),
    (own, catalog.ONE_WEIRD_TRICK, catalog.TWO_COLUMN, catalog.DATA_PARALLEL),
  ):
    for line in make_figure(*layouts).lines:
      name = line.get_label().split(" (")[0]
      if not name.startswith("_"):  # marks of the batches
        assert colors.setdefault(name, line.get_color()) == line.get_color()
  assert len(colors) == len(set(colors.values())) == 4


def test_layouts_of_the_catalog_have_different_colors():
  names = [layout.name for layout in catalog.LAYOUTS]
  assert len(set(chart._choose_colors(names).values())) == len(names)


@pytest.mark.parametrize(
  ("layouts", "batch_sizes"),
  [
    ([catalog.DATA_PARALLEL], [128]),  # no power of ten in sight
    ([catalog.TWO_COLUMN], [16, 4096]),
    ([catalog.TWO_COLUMN, catalog.DATA_PARALLEL], [128]),
  ],
)
def test_ticks_are_plain_numbers(layouts, batch_sizes):
  panel = make_figure(*layouts, batch_sizes=batch_sizes)
  for axis in (panel.xaxis, panel.yaxis):
    low, high = axis.get_view_interval()
    shown = [
      label.get_text()
      for label, place in (
        *zip(axis.get_majorticklabels(), axis.get_majorticklocs(), strict=True),
        *zip(axis.get_minorticklabels(), axis.get_minorticklocs(), strict=True),
      )
      if low <= place <= high and label.get_text()
    ]
    assert shown and len(shown) == len(set(shown))
    for text in shown:
      assert re.fullmatch(r"[\d,]+(\.\d+)?", text), shown


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("a.pdf", "'a.pdf' does not end in .svg or .png. Set --chart"),
    ("nosuch/a.svg", "'nosuch' is not a folder that you .* Set --chart"),
  ],
)
def test_file_that_cannot_be_drawn_to_is_refused(path, message):
  with pytest.raises(ValueError, match=message):
    command.check_path(path, flag="chart", endings=command.PICTURES)


def test_plan_is_that_of_the_dtype_of_the_exchange():
  float32 = row(catalog.TWO_COLUMN, 128)
  bfloat16 = comparison.make_row(
    dataclasses.replace(WORKLOAD, exchange_dtype="bfloat16"),
    catalog.TWO_COLUMN,
  )
  assert float32.planned_bytes == 2 * bfloat16.planned_bytes

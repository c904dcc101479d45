"""A picture shows the plan completely, and its texts can be read."""

import collections
import dataclasses
import itertools
import re

import matplotlib.colors
import matplotlib.style
import matplotlib.text
import numpy as np
import PIL.Image
import pytest
from matplotlib.backends import backend_agg

from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.figures import layout as draw
from alexnet_jax.figures import layout_captions as captions
from alexnet_jax.figures import layout_grid as grid
from alexnet_jax.figures import layout_scene as scene
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, check
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from tests import build
from tests.partition.test_placement import MIXED, OVERRIDDEN

Placement = layout_lib.Placement
BATCH_SIZE = 1024


# Both axes of the fully connected layers split features, and there are only two
# rows: each of these layers has an exchange between the rows, and one inside.
TWO_AXES = layout_lib.Layout(
  name="two_axes",
  mesh={"data": 2, "model": 4},
  conv=Placement(batch=("data", "model")),
  fc=Placement(outputs=("data", "model")),
  layers={"fc8": Placement(inputs=("data", "model"))},
)
LARGER = (
  build.with_mesh(catalog.ONE_WEIRD_TRICK, data=2, model=4),
  build.with_mesh(catalog.ONE_WEIRD_TRICK, data=8, model=8),
  build.with_mesh(catalog.DATA_PARALLEL, data=8),
  build.with_mesh(catalog.TWO_COLUMN_DATA, data=4, column=2),
)
# What crossed in 2012; the layout of the catalog sends less.
AS_BUILT = layout_lib.override(
  catalog.TWO_COLUMN,
  mesh={},
  placements={"fc6": {"outputs": ("column",)}},
  rows=wirings.ALEXNET_2012.layers,
)
# Partial sums of both kinds, scattered over features and over images.
SCATTERED = layout_lib.Layout(
  name="scattered",
  mesh={"x": 2, "y": 2},
  conv=Placement(batch=("x", "y")),
  fc=Placement(batch=("x",), inputs=("y",)),
  layers={
    "fc6": Placement(batch=("x",), inputs=("y",)),
    "fc7": Placement(inputs=("x",), outputs=("y",)),
  },
)
# The devices of a column split it, and normalize with neighbors' maps.
INSIDE_COLUMNS = layout_lib.Layout(
  name="inside_columns",
  mesh={"column": 2, "part": 2},
  conv=Placement(outputs=("column", "part")),
  fc=Placement(inputs=("column",), outputs=("part",)),
  layers={"fc7": Placement(inputs=("part",), outputs=("column",))},
)


def _conv(name, reads, **fields):
  fields = {"features": 64, "window": 3, "padding": (1, 1)} | fields
  return wiring.Layer(name=name, reads=reads, **fields)


def _dense(name, **fields):
  return wiring.Layer(name=name, reads="all", **{"features": 512} | fields)


# Eleven layers with all that a header may say, in names of any length.
LONG = wiring.make_network(
  wiring.Wiring(
    name="long",
    columns=2,
    layers=(
      _conv(
        *("first_convolution_of_the_stem", "image"),
        **{"stride": 2, "normalize": "across", "pool": wiring.Pool()},
        order=("activation", "pooling", "normalization"),
      ),
      _conv("a", "all", normalize="map"),
      _conv(
        *("second_convolution_of_the_block", "own"),
        **{"normalize": "column", "pool": wiring.Pool()},
        order=("normalization", "pooling", "activation"),
      ),
      _conv("b", "all", normalize="column", map_lrn=wiring.Lrn()),
      _conv("withoutanyunderscoreinthename", "own", normalize="batch"),
      _conv("WWWWWWWWWWWWWWWW", "all", pool=wiring.Pool(kind="average")),
      _conv("d", "all"),
      _dense("first_dense_layer"),
      _dense("mmmmmmmmmmmmmmmm", normalize="batch"),
      _dense("another_rather_long_dense_layer"),
      _dense("the_last_layer_of_all", activation="linear"),
    ),
  )
)
OWN = layout_lib.Layout(
  name="own",
  mesh={"model": 2, "data": 2},
  conv=Placement(batch=("data",), outputs=("model",)),
  fc=Placement(batch=("data",), features=("model",)),
)
CASES = [
  *(
    (build.FULL_NETWORK, layout)
    for layout in (
      *(catalog.ONE_DEVICE, catalog.TWO_COLUMN, catalog.ONE_WEIRD_TRICK),
      *(catalog.TWO_COLUMN_SHARDED, catalog.TWO_DIMENSIONAL),
      *(TWO_AXES, OVERRIDDEN, SCATTERED, INSIDE_COLUMNS),
    )
  ),
  (
    wiring.make_network(wirings.FOUR_COLUMN),
    build.with_mesh(catalog.TWO_COLUMN, column=4),
  ),
  (LONG, OWN),
  (wiring.make_network(wirings.VGG_11), catalog.TWO_DIMENSIONAL),
  (wiring.make_network(wirings.SOURCE_145), catalog.TWO_COLUMN_2D),
]
MORE_CASES = [
  *(
    (build.FULL_NETWORK, layout)
    for layout in (
      *(catalog.DATA_PARALLEL, catalog.TWO_COLUMN_DATA),
      *(catalog.TENSOR_PARALLEL, catalog.FULLY_SHARDED, catalog.TWO_COLUMN_2D),
      *(*LARGER, *MIXED),
    )
  ),
  (wiring.make_network(wirings.INDEPENDENT_COLUMNS), catalog.TWO_COLUMN),
  (build.make_network(width=1 / 4, init="source"), catalog.TWO_COLUMN),
  (wiring.make_network(wirings.CAFFENET), catalog.ONE_WEIRD_TRICK),
]


def make_plan(network, layout, batch_size=BATCH_SIZE):
  check.check(layout, network, batch_size=batch_size)
  return build.make_plan(network, layout, batch_size=batch_size)


def choose(network, layout, batch_size=BATCH_SIZE):
  return plan_lib.choose_placements(network, layout, batch_size=batch_size)


def make_scene(network, layout, batch_size=BATCH_SIZE, hosts=None):
  plan = make_plan(network, layout, batch_size)
  layout = choose(network, layout, batch_size)
  return scene.make_scene(
    network, layout, plan, batch_size=batch_size, hosts=hosts
  )


def find_hosts(layout, count, order=None):
  """Spreads a layout over so many hosts, its axes in their order."""
  machine = machine_lib.load("dgx_h100")
  machine = machine.with_hosts(count, layout.devices // count)
  return hosts_lib.find_hosts(machine, layout, order or tuple(layout.mesh))


@pytest.fixture(
  params=[*CASES, *build.slow(*MORE_CASES)],
  ids=lambda case: "-".join(
    [case[0].name, case[1].name, *map(str, case[1].mesh.values())]
  ),
)
def case(request):
  return request.param


def test_boxes_have_the_published_sizes_of_one_gpu():
  drawn = make_scene(build.FULL_NETWORK, AS_BUILT)
  for row in (0, 1):
    boxes = {box.layer: box for box in drawn.boxes if box.row == row}
    # Krizhevsky et al. 2012, Figure 2.
    assert [(box.side, box.features) for box in boxes.values()] == [
      *((224, 3), (55, 48), (27, 128), (13, 192), (13, 192), (13, 128)),
      *((1, 2048), (1, 2048), (1, 1000), (1, 1000)),
    ]
    assert list(boxes)[-2:] == ["fc8", "loss"]
    assert boxes["fc8"].partial and not boxes["loss"].partial
  texts = [label.text for label in drawn.labels]
  assert texts.count("13 × 13") == 6 and texts.count("48 maps") == 2


def test_part_and_normalization_of_a_layer_are_named():
  layout = build.with_mesh(catalog.ONE_WEIRD_TRICK, data=1, model=4)
  texts = [
    label.text for label in make_scene(build.FULL_NETWORK, layout).labels
  ]
  below_fc7 = texts.index("1,024")
  assert texts[below_fc7 : below_fc7 + 2] == ["1,024", "of 4,096"]
  # fc7 alone: fc6 and fc8 have partial sums of all their outputs.
  assert texts.count("of 4,096") == 4 and "of 96" not in texts
  conv1 = texts.index("conv1")
  assert texts[conv1 : conv1 + 5] == [
    *("conv1", "11 × 11, stride 4", "local response", "normalization"),
    "max pooling",
  ]
  assert texts.count("local response") == 2  # conv1 and conv2
  network = build.make_network(normalization="batch")
  texts = [label.text for label in make_scene(network, layout).labels]
  fc6 = texts.index("fc6")
  assert texts[fc6 : fc6 + 4] == ["fc6", "dense", "batch", "normalization"]


@pytest.mark.parametrize(
  ("table", "name", "header"),
  [
    (
      *(wirings.CAFFENET, "conv1"),
      ["11 × 11, stride 4", "max pooling", "local response", "normalization"],
    ),
    # The activation comes last, which is not usual.
    (
      *(wirings.SOURCE_145, "conv1"),
      [
        *("11 × 11, stride 4", "local response", "normalization"),
        *("max pooling", "relu"),
      ],
    ),
    # Batch normalization comes first in any order.
    (
      dataclasses.replace(
        wirings.CAFFENET,
        layers=tuple(
          dataclasses.replace(row, normalize="batch") if row.pool else row
          for row in wirings.CAFFENET.layers
        ),
      ),
      "conv5",
      ["3 × 3", "batch", "normalization", "max pooling"],
    ),
  ],
)
def test_header_follows_the_order_of_the_row(table, name, header):
  network = wiring.make_network(table)
  assert captions.layer(network, name) == ([name], header)


def test_long_name_is_broken_after_underscores():
  names = {row.name: captions.layer(LONG, row.name)[0] for row in LONG.layers}
  assert names["first_convolution_of_the_stem"] == [
    *("first_", "convolution_", "of_the_stem")
  ]
  for name, lines in names.items():
    assert "".join(lines) == name and max(map(len, lines)) <= 14


def test_devices_of_two_columns_meet_where_the_paper_has_them_meet():
  drawn = make_scene(build.FULL_NETWORK, catalog.TWO_COLUMN)
  arrows = {(each.layer, each.source, each.target) for each in drawn.arrows}
  layers = ("conv3", "fc6", "fc7", "fc8")
  assert arrows == {
    (layer, *rows) for layer in layers for rows in ((0, 1), (1, 0))
  }


def test_sum_is_behind_its_layer_and_gather_before_it():
  drawn = make_scene(build.FULL_NETWORK, catalog.TWO_COLUMN)
  x = {box.layer: box.x for box in drawn.boxes}
  sides = {"conv3": ("conv2", "conv3"), "fc6": ("fc6", "fc7")}
  sides |= {"fc7": ("fc6", "fc7"), "fc8": ("fc8", "loss")}
  for arrow in drawn.arrows:
    before, behind = sides[arrow.layer]
    assert x[before] < (arrow.start[0] + arrow.end[0]) / 2 < x[behind]


def test_data_parallel_rows_are_not_connected_but_in_their_gradients():
  drawn = make_scene(build.FULL_NETWORK, catalog.DATA_PARALLEL, batch_size=128)
  assert len(drawn.rows) == 2 and not drawn.arrows
  texts = [label.text for label in drawn.labels]
  assert "gradients: sum over data" in texts
  assert texts.count("64 of 128") == 8
  assert "151 MB" in texts  # fc6: 4 bytes x (9216 + 1) x 4096


def test_arrows_connect_only_rows_that_differ_in_their_axes():
  drawn = make_scene(build.FULL_NETWORK, catalog.TWO_COLUMN_DATA)
  pairs = {(each.source, each.target) for each in drawn.arrows}
  assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2)}


@pytest.mark.parametrize(
  "layout, places, devices",
  [
    (catalog.ONE_DEVICE, [{}], 1),
    (catalog.TWO_COLUMN, [{"column": 0}, {"column": 1}], 1),
    (LARGER[0], [{"model": index} for index in range(4)], 2),
    (LARGER[1], [{"model": index} for index in (0, 1, 7)], 8),
    (LARGER[2], [{}], 8),
    (LARGER[3], [{"column": 0}, {"column": 1}], 4),
    (TWO_AXES, [{"data": 0}, {"data": 1}], 4),
  ],
)
def test_rows_stand_for_groups_of_devices(layout, places, devices):
  network = build.FULL_NETWORK
  rows = grid.find_rows(network, choose(network, layout, batch_size=64))
  assert [row.position for row in rows] == places
  assert {len(row.devices) for row in rows} == {devices}
  if layout == LARGER[3]:  # they are counted along the mesh
    assert [row.devices for row in rows] == [(0, 2, 4, 6), (1, 3, 5, 7)]


def test_exchange_inside_a_group_is_a_loop():
  drawn = make_scene(build.FULL_NETWORK, TWO_AXES)
  loops = [mark for mark in drawn.marks if mark.sign == "loop"]
  # The gathers over `model` into fc6 and fc7, and the sum of fc8 over both
  # axes, in both rows; and one in the legend.
  assert len(loops) == 2 * 3 + 1
  arrows = {(arrow.layer, arrow.axes) for arrow in drawn.arrows}
  gathers = {("fc6", ("data",)), ("fc7", ("data",))}
  assert arrows == gathers | {("fc8", ("data", "model"))}


def test_norms_of_the_update_are_in_the_sum_and_nowhere_else():
  network, layout = build.FULL_NETWORK, catalog.TWO_COLUMN_SHARDED
  layout = choose(network, layout)
  plan = make_plan(network, layout)
  with_norms = build.make_plan(
    network, layout, batch_size=BATCH_SIZE, norms=True
  )
  before, after = (
    scene.make_scene(network, layout, each, batch_size=BATCH_SIZE)
    for each in (plan, with_norms)
  )
  changed = [
    label
    for label, other in zip(after.labels, before.labels, strict=True)
    if label != other
  ]
  assert len(changed) == 1 and "of norms" in changed[0].text
  assert after.arrows == before.arrows and after.marks == before.marks


@pytest.mark.parametrize(
  ("normalization", "tensor"), [("batch", "statistics"), ("across", "edges")]
)
def test_what_a_layer_normalizes_with_has_rows(normalization, tensor):
  network = wiring.make_network(
    wirings.ALEXNET_2012, normalization=normalization
  )
  layout = catalog.TWO_COLUMN_DATA
  plan = make_plan(network, layout)
  rows = captions.table(network, layout, plan, BATCH_SIZE)
  shown = {
    (" ".join(row.header).startswith(tensor), name)
    for row in rows
    for name in row.cells
  }
  layers = {each.layer for each in plan if each.tensor == tensor}
  assert layers and {(True, name) for name in layers} <= shown


def test_every_exchange_is_shown_once(case):
  network, layout = case
  plan = make_plan(network, layout)
  shown = [
    exchange
    for crossings in grid.find_crossings(network, plan).values()
    for crossing in crossings
    for exchange in crossing
    if exchange
  ]
  expected = [
    exchange
    for exchange in plan
    if exchange.images and exchange.tensor == plan_lib.ACTIVATION
  ]
  assert collections.Counter(shown) == collections.Counter(expected)
  entries = captions.table(network, layout, plan, BATCH_SIZE)
  others = {(e.kind, e.layer) for e in plan if e.tensor != plan_lib.ACTIVATION}
  assert others == {
    (entry.kind, layer)
    for entry in entries
    if entry.kind
    for layer in entry.cells
  }


def test_no_text_touches_another_text_a_box_or_an_arrow(case):
  check_texts(make_scene(*case))


# The rows of a host stand together, or all hosts have the same rows, or the
# rows in between are left out.
HOSTS = [
  (layout, find_hosts(layout, count, order))
  for layout, count, order in (
    (catalog.TWO_COLUMN, 2, None),
    (catalog.TWO_COLUMN_DATA, 2, ("column", "data")),
    (TWO_AXES, 4, None),
    (build.with_mesh(catalog.ONE_WEIRD_TRICK, data=2, model=4), 2, None),
    (build.with_mesh(catalog.ONE_WEIRD_TRICK, data=8, model=8), 8, None),
    (build.with_mesh(catalog.ONE_WEIRD_TRICK, data=1, model=8), 2, None),
    (build.with_mesh(catalog.DATA_PARALLEL, data=8), 2, None),
  )
]
on_hosts = pytest.mark.parametrize(
  ("layout", "hosts"),
  HOSTS,
  ids=[f"{one.name}-{i}" for i, (one, _) in enumerate(HOSTS)],
)


@on_hosts
def test_picture_of_hosts_can_be_read(layout, hosts):
  check_texts(make_scene(build.FULL_NETWORK, layout, hosts=hosts))


@on_hosts
def test_each_row_is_in_the_frame_of_its_hosts(layout, hosts):
  drawn = make_scene(build.FULL_NETWORK, layout, hosts=hosts)
  names = [
    label for label in drawn.labels if label.bold and hosts.word in label.text
  ]
  assert len(names) == len(drawn.frames)
  for row in drawn.rows:
    (frame,) = [
      frame
      for frame in drawn.frames
      if frame.y < row.y - row.height / 2
      and row.y + row.height / 2 < frame.y + frame.height
    ]
    (name,) = [
      name.text for name in names if frame.y < name.y < frame.y + frame.height
    ]
    assert name == captions.frame(hosts, row.hosts)
    assert name.startswith(f"host{'s' * (len(row.hosts) > 1)} {row.hosts[0]}")


@on_hosts
def test_what_crosses_hosts_is_wide_and_said(layout, hosts):
  drawn = make_scene(build.FULL_NETWORK, layout, hosts=hosts)
  for arrow in drawn.arrows:
    rows = drawn.rows[arrow.source], drawn.rows[arrow.target]
    assert arrow.crosses == (rows[0].hosts != rows[1].hosts)
    assert not arrow.crosses or hosts.cross(arrow.axes)
  plan = make_plan(build.FULL_NETWORK, layout)
  texts = [label.text for label in drawn.labels]
  assert texts.count("between hosts") >= any(
    hosts.cross(each.axes) for each in plan
  )
  assert "2 hosts × 1 devices" in " ".join(texts) or (
    layout is not catalog.TWO_COLUMN
  )


def test_rows_of_a_host_stand_together():
  order = ("column", "data")
  hosts = find_hosts(catalog.TWO_COLUMN_DATA, 2, order)
  drawn = make_scene(build.FULL_NETWORK, catalog.TWO_COLUMN_DATA, hosts=hosts)
  columns = [row.position["column"] for row in drawn.rows]
  assert columns == [0, 0, 1, 1]
  assert all(arrow.crosses for arrow in drawn.arrows)
  hosts = find_hosts(catalog.TWO_COLUMN_DATA, 2)
  drawn = make_scene(build.FULL_NETWORK, catalog.TWO_COLUMN_DATA, hosts=hosts)
  assert [row.position["column"] for row in drawn.rows] == [0, 1, 0, 1]
  assert not any(arrow.crosses for arrow in drawn.arrows)
  header = ["gradients: sum over data", "between hosts"]
  texts = [label.text for label in drawn.labels]
  assert texts[texts.index(header[0]) :][:2] == header


def check_texts(drawn):
  with matplotlib.style.context(["default", draw.STYLE]):
    figure = draw.draw_scene(drawn)
    renderer = backend_agg.FigureCanvasAgg(figure).get_renderer()
    texts = figure.axes[0].texts
    extents = {text: text.get_window_extent(renderer) for text in texts}
  assert len(extents) == len(drawn.labels)
  for (one, here), (other, there) in itertools.combinations(extents.items(), 2):
    assert not here.overlaps(there), (one.get_text(), other.get_text())
  to_pixels = figure.axes[0].transData.transform
  for text, extent in extents.items():
    corners = extent.get_points()
    assert figure.bbox.count_contains(corners) == 2, text.get_text()
    for box in drawn.boxes:
      left, right = box.x, box.x + box.width + box.slant[0]
      edges = [(left, box.y - box.reach), (right, box.y + box.reach)]
      (left, bottom), (right, top) = to_pixels(edges)
      apart = extent.x1 < left or extent.x0 > right
      apart = apart or extent.y1 < min(top, bottom)
      assert apart or extent.y0 > max(top, bottom), (text.get_text(), box)
  along = np.linspace(0, 1, 200)[:, None]
  for arrow in drawn.arrows:
    start, end = to_pixels([arrow.start, arrow.end])
    points = start + along * (end - start)
    for text, extent in extents.items():
      assert not extent.count_contains(points), (text.get_text(), arrow)


@pytest.mark.parametrize("suffix", ["svg", *build.slow("png")])
def test_same_layout_gives_the_same_file(suffix, tmp_path):
  network, layout = build.FULL_NETWORK, catalog.TWO_COLUMN_SHARDED
  layout = choose(network, layout)
  plan = make_plan(network, layout)
  files = [tmp_path / f"{name}.{suffix}" for name in ("one", "other")]
  for file in files:
    draw.draw(network, layout, plan, batch_size=BATCH_SIZE, path=str(file))
  one, other = (file.read_bytes() for file in files)
  assert one == other and len(one) > 20_000
  if suffix == "svg":
    assert re.match(rb"<\?xml", one)
  else:
    with PIL.Image.open(files[0]) as image:
      assert image.width > 1600 and len(image.getcolors(1 << 20)) > 100


def find_luminance(color):
  """As WCAG 2.1 defines it, 0 to 1."""
  values = np.array(matplotlib.colors.to_rgb(color))
  low, high = values / 12.92, ((values + 0.055) / 1.055) ** 2.4
  return np.where(values <= 0.04045, low, high) @ (0.2126, 0.7152, 0.0722)


def test_figure_can_be_read_on_light_and_dark_pages():
  network, layout = build.FULL_NETWORK, catalog.TWO_DIMENSIONAL
  layout = choose(network, layout)
  plan = make_plan(network, layout)
  drawn = draw.to_figure(network, layout, plan, batch_size=BATCH_SIZE)
  assert drawn.get_facecolor()[3] == 0
  colors = {
    matplotlib.colors.to_hex(text.get_color())
    for text in drawn.findobj(matplotlib.text.Text)
  }
  assert "#000000" in colors  # a page sets it
  for color in colors - {"#000000"}:
    for page in ("#ffffff", "#111111"):
      one, other = sorted(find_luminance(each) + 0.05 for each in (color, page))
      assert other / one > 3.8, color


def test_name_is_drawn_as_text(tmp_path):
  layout = dataclasses.replace(catalog.TWO_COLUMN, name=r"_$\none$ [v1]")
  layout = choose(build.FULL_NETWORK, layout, batch_size=8)
  plan = make_plan(build.FULL_NETWORK, layout, batch_size=8)
  path = tmp_path / "a.svg"
  draw.draw(build.FULL_NETWORK, layout, plan, batch_size=8, path=str(path))
  assert r"_$\none$ [v1]" in path.read_text()


@pytest.mark.parametrize(
  "number, text",
  [
    *((16, "16 B"), (1_000, "1.00 kB"), (11_075_584, "11.1 MB")),
    *((99_960_000, "100 MB"), (999_600_000, "1.00 GB")),
  ],
)
def test_bytes_are_written_with_three_digits(number, text):
  assert captions.to_text(number) == text

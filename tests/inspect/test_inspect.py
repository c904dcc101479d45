"""The commands that examine a layout before any run, as users run them."""

import dataclasses
import fractions
import io
import itertools
import json
import math
import re
import tempfile
import types

import pytest
import rich.console

from alexnet_jax.cli import command as command_lib
from alexnet_jax.inspect import tables as tables_lib
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import audit, catalog, mesh
from alexnet_jax.program import summary
from tests import build, processes

# A layout of a user: pairs of devices split the fully connected layers, each
# convolution splits the batch, and conv2 is stored sharded.
OWN_CONFIG = """
from alexnet_jax.partition import catalog
from configs import default

PAIRS = catalog.Layout(
  name="pairs",
  mesh={"pair": 2, "member": 2},
  conv=catalog.Placement(batch=("pair", "member")),
  fc=catalog.Placement(batch=("pair",), features=("member",)),
  layers={
    "conv2": catalog.Placement(batch=("pair", "member"), fsdp=("member",)),
    "fc7": catalog.Placement(batch=("pair",), inputs=("member",)),
    "fc8": catalog.Placement(batch=("pair", "member")),
  },
)

def get_config(variant="digits"):
  config = default.get_config(variant)
  config.batch_size = 16
  config.num_epochs = 0.05
  config.network.update({"wiring": "lenet5", "width": 1.0, "image_size": 28})
  default.use_layout(config, PAIRS)
  return config
"""


def run(command, *flags):
  return processes.run(
    ["python", "-m", f"alexnet_jax.{command}", *flags],
    tempfile.gettempdir(),
    timeout=600,  # libtpu takes minutes for 64 chips on a busy machine
  )


def run_well(command, *flags) -> str:
  """Returns the output of a command, which must end well."""
  process = run(command, *flags)
  assert process.code == 0, process.out + process.errors
  return process.out


CONFIG = "--config=configs/two_device.py"
SHORT = "--config=tests/short_network.py:two_device"


@pytest.fixture(scope="module")
def own_config(tmp_path_factory):
  path = tmp_path_factory.mktemp("own") / "pairs.py"
  path.write_text(OWN_CONFIG)
  return path


def test_json_has_what_the_tables_show():
  flags = ("--format=json", "--config.network.width=0.125")
  found = json.loads(run_well("inspect", CONFIG, *flags))
  assert found["layout"] == "two_column"
  assert found["network"] == "alexnet2012"
  assert (found["devices"], found["batch"]) == (2, 64)
  assert [layer["layer"] for layer in found["layers"]] == [
    *("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
  ]
  assert found["layers"][0] == found["layers"][0] | {
    "batch_axes": [],
    "inputs_axes": [],
    "outputs_axes": ["column"],
    "features_axes": [],
    "arrives": [],  # every device has the images
    "overlap_gather": False,
    "overlaps": False,
    "frozen": False,
    "inputs": 3,
    "outputs": 6,
    "are_partial_sums": False,
    "kernel": [11, 11, 3, 6],
    # Half of 12 kernels of 11 x 11 x 3, and of 12 biases.
    "parameter_bytes": 4 * (11 * 11 * 3 * 6 + 6),
    "optimizer_bytes": 4 * (11 * 11 * 3 * 6 + 6),
    # 15 x 15 places from 67 pixels, half of 12 maps.
    "activation_bytes": 4 * 64 * 15 * 15 * 6,
    "images": 64,
    "kept_images": 64,
    "values_per_image": 15 * 15 * 6,
    "multiplications_per_image": 15 * 15 * 11 * 11 * 3 * 6,
    "passes": 2,
    "flops": 2 * 2 * 64 * 15 * 15 * 11 * 11 * 3 * 6,
  }
  fc7 = found["layers"][6]
  assert fc7["features_axes"] == fc7["outputs_axes"] == ["column"]
  assert fc7["arrives"] == ["features gathered over column"]
  # All 10 logits, from half of the 512 units of fc7: the fewest to send.
  fc8 = found["layers"][7]
  assert (fc8["inputs"], fc8["outputs"]) == (256, 10)
  assert fc8["inputs_axes"] == ["column"] and fc8["are_partial_sums"]
  assert found["loss_arrives"] == []
  audited = ("planned", "traced", "compiled")
  # 32 maps of 3 x 3 after pooling, both halves; each device sends one.
  assert found["exchanges"][0] == {
    "layer": "conv3",
    "direction": "forward",
    "tensor": "activation",
    "kind": "all_gather",
    "axes": ["column"],
    "devices": 2,
    "elements": 64 * 32 * 3 * 3,
    "images": 64,
    "elements_per_image": 32 * 3 * 3,
    "bytes_per_element": 4,
    **{f"{name}_bytes": 4 * 64 * 16 * 3 * 3 for name in audited},
  }
  sent = sum(line["planned_bytes"] for line in found["exchanges"])
  axis = {"axis": "column", "devices": 2, "sent_bytes": sent}
  assert found["axes"] == [axis | {"links": "inside a process"}]
  assert found["nested_axes"] == ["column"]
  empty = {"unplanned": [], "missing": [], "notes": []}
  assert found["audit"] == {"agrees": True, **empty}
  assert found["memory"]["peak"] > 0


def print_tables(program, lines=None, *, width=120) -> str:
  console = rich.console.Console(file=io.StringIO(), width=width)
  for tables in (
    summary.make_layout_table(program),
    tables_lib.make_load_tables(program),
    summary.make_plan_table(program, lines),
  ):
    command_lib.print_table(console, tables)
  return console.file.getvalue()


def read_tables(text: str) -> list[tuple[list[dict[str, str]], list[str], str]]:
  """Reads printed tables: for each its rows, its sums, and what follows."""
  found = []
  text = text.removesuffix("\n\none device sends nothing\n")
  for block in text.split("\n\n"):
    _, header, *lines = block.strip("\n").splitlines()
    rows = list(itertools.takewhile(lambda line: line.startswith(" "), lines))
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    names = re.split(r"\s{2,}", header.strip())
    notes = "\n".join(lines[len(rows) :])
    sums = cells.pop()[1:] if cells and cells[-1][0] == "sum" else []
    table = [dict(zip(names, row, strict=False)) for row in cells]
    found.append((table, sums, notes))
  return found


def number(text: str) -> float:
  return float(text.replace(",", ""))


def to_bytes(text: str) -> float:
  """Reads `1.049`, of MB, or `16 B`."""
  return number(text[:-2]) if text.endswith(" B") else 1e6 * number(text)


def check_sums(rows: list[dict[str, str]], sums: list[str], *names) -> None:
  for name, found in zip(names, sums, strict=True):
    total = sum(to_bytes(row[name]) for row in rows)
    assert abs(total - to_bytes(found)) <= 501 * (1 + len(rows))


def recompute_share(row: dict[str, str]) -> fractions.Fraction:
  """Of the values in one row: what a ring of devices sends at the least."""
  devices = math.prod(
    int(size.partition("=")[2]) for size in row["group"].split(", ")
  )
  gathered = fractions.Fraction(devices - 1, devices)
  return {
    "all-gather": gathered,
    "reduce-scatter": gathered,
    "sum": 2 * gathered,
    "all-to-all": gathered / devices,
  }[row["exchange"]]


BATCH_NORM = wiring.make_network(
  wirings.MERGED_TOWER, normalization="batch", num_classes=16
)


# Partial sums of all images, of which each device keeps a fourth.
SCATTERED = catalog.Layout(
  name="scattered",
  mesh={"x": 4},
  conv=catalog.Placement(batch=("x",)),
  fc=catalog.Placement(batch=("x",)),
  layers={"fc6": catalog.Placement(inputs=("x",))},
)


@pytest.mark.parametrize(
  ("layout", "network", "options"),
  [
    *((layout, build.FULL_NETWORK, {}) for layout in catalog.LAYOUTS),
    (SCATTERED, build.FULL_NETWORK, {}),
    (
      build.with_mesh(catalog.ONE_WEIRD_TRICK, data=2, model=4),
      build.FULL_NETWORK,
      {"exchange_dtype": "bfloat16", "compute_dtype": "bfloat16"},
    ),
    (
      build.with_mesh(catalog.TENSOR_PARALLEL, data=2, model=4),
      BATCH_NORM,
      {"exchange_dtype": "bfloat16", "ema_decay": 0.9},
    ),
  ],
  ids=lambda part: getattr(part, "name", ""),
)
def test_every_figure_follows_from_the_columns_shown(layout, network, options):
  program = build.make_program(
    *(layout, network, build.FULL_AUGMENTATION), batch_size=64, **options
  )
  tables = read_tables(print_tables(program))
  total = 0.0

  rows, sums, notes = tables[2]
  assert "MB = weights x 4 bytes" in notes
  check_sums(rows, sums, "weights", "MB", "optimizer", "optimizer MB")
  for row in rows:
    weights = number(row["weights"])
    # Some more than the kernel's: biases, and scales.
    kernel = math.prod(map(int, row["kernel"].split(" x ")))
    assert kernel < weights <= kernel + 2 * 4096
    assert to_bytes(row["MB"]) == pytest.approx(4 * weights, abs=501)
    optimizer = number(row["optimizer"])
    assert to_bytes(row["optimizer MB"]) == pytest.approx(
      4 * optimizer, abs=501
    )
    # The velocity; and the averages, also of the statistics.
    assert optimizer == weights or (
      "ema_decay" in options and 2 * weights <= optimizer <= 3 * weights
    )

  rows, sums, notes = tables[3]
  itemsize = int(re.search(r"x (\d) bytes", notes)[1])
  assert itemsize == (2 if "compute_dtype" in options else 4)
  check_sums(rows, sums, "MB", "GFLOP")
  for row in rows:
    images = number(row["images"])
    kept = number(row.get("kept", row["images"]))
    assert kept == (32 if layout is SCATTERED else images) / (
      2 if layout is SCATTERED else 1
    )
    expected = kept * number(row["values"]) * itemsize
    assert to_bytes(row["MB"]) == pytest.approx(expected, abs=501)
    flops = images * number(row["multiplications"]) * 2 * number(row["passes"])
    assert 1e9 * number(row["GFLOP"]) == pytest.approx(flops, abs=501e3)

  if layout is catalog.ONE_DEVICE:
    assert print_tables(program).endswith("one device sends nothing\n")
    return
  for rows, sums, notes in tables[4:]:
    itemsize = re.search(r"x (\d) bytes", notes)
    check_sums(rows, sums, "MB")
    total += to_bytes(sums[0])
    for row in rows:
      share = recompute_share(row)
      assert fractions.Fraction(row["share"]) == share
      each = int(itemsize[1] if itemsize else row["bytes"])
      expected = number(row["values"]) * number(row.get("images", "1")) * each
      # Rounded down, tensor by tensor.
      found = to_bytes(row["MB"])
      assert found == pytest.approx(float(expected * share), abs=501), row
  in_all = re.search("in all, one device sends (.+) MB", tables[-1][2])[1]
  planned = sum(collective.sent_bytes for collective in program.plan)
  assert to_bytes(in_all) == pytest.approx(planned, abs=501)
  assert total == pytest.approx(planned, abs=1_002)


def test_flops_lead_from_the_table_to_the_count_of_the_compiler():
  program = build.make_program(
    *(catalog.TWO_COLUMN, build.FULL_NETWORK, build.FULL_AUGMENTATION),
    batch_size=128,
    implementations="conv3x3=winograd",
  )
  compiled = types.SimpleNamespace(cost_analysis=lambda: {"flops": 197.3e9})
  title, *lines = tables_lib.describe_flops(program, compiled)
  assert title.startswith("GFLOP of one device in a step")
  # Half of 2 x 128 images x the multiplications, in millions, x passes.
  convs = [2 * 105.415, 3 * 223.949, 3 * 149.520, 3 * 112.140, 3 * 74.760]
  dense = 3 * (37.749 + 16.777 + 4.096)
  # Of these windows, so many values are no padding: of 55 x 11, of 27 x 5, ...
  read = [(602 / 605) ** 2, (129 / 135) ** 2, *[(37 / 39) ** 2] * 3]
  # In the last three, 49 tiles of 16 multiplications, not 169 windows of 9.
  fewer = [*read[:2], *[49 * 16 / (169 * 9)] * 3]
  expected = [
    sum(each * part for each, part in zip(convs, parts, strict=True)) + dense
    for parts in ([1] * 5, read, fewer)
  ]
  found = [float(line.split()[0]) for line in lines]
  assert found[:3] == pytest.approx(
    [0.128 * each for each in expected], rel=1e-4
  )
  assert found[3] == 197.3
  texts = ("in the table", "padding", "conv3, conv4, conv5", "by the compiler")
  for line, text in zip(lines, texts, strict=True):
    assert text in line
  program = dataclasses.replace(program, compute_dtype="bfloat16")
  lines = tables_lib.describe_flops(program, compiled)
  assert not [line for line in lines if "Winograd" in line]


def test_tables_fit_into_80_columns():
  for layout in (
    *catalog.LAYOUTS,
    SCATTERED,
    build.with_mesh(catalog.TWO_COLUMN_2D, data=2, column=2, model=2),
  ):
    program = build.make_program(
      *(layout, build.FULL_NETWORK, build.FULL_AUGMENTATION), batch_size=128
    )
    text = print_tables(program, width=80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80, text


def print_layout(layout, network=build.FULL_NETWORK, **options) -> str:
  """Prints the table of a layout and that of arrivals."""
  program = build.make_program(
    *(layout, network, build.FULL_AUGMENTATION), batch_size=128, **options
  )
  text = print_tables(program, width=80)
  return text[: text.index("weights that one device holds")]


def test_rows_have_only_the_axes_that_split_something():
  # conv1 of one weird trick: a fourth of the images, all maps.
  text = print_layout(catalog.ONE_WEIRD_TRICK)
  assert re.search(r"conv1 +32 of 128 +data, model +3 +96 *\n", text)
  assert "over" not in print_layout(catalog.ONE_DEVICE)
  # The axis `data` has one device.
  text = print_layout(catalog.TWO_DIMENSIONAL)
  fc6 = r"fc6 +128 +128 of 256 +x +2,048 of 4,096 +y *\n"
  assert re.search(fc6, text) and re.search("conv1 +32 of 128 +y, x +3", text)


def test_each_layer_says_what_arrives():
  text = print_layout(catalog.TWO_COLUMN)
  assert "features: inputs in fc6, fc8 and outputs in fc7," in text
  assert re.search(r" conv1 +image +- *\n conv2 +column +- *\n", text)
  text = print_layout(catalog.TWO_DIMENSIONAL)
  assert "features:" not in text  # the layout has none
  lines = [line.strip() for line in text.splitlines()]
  fc6 = lines.index("fc6    all     images exchanged for features over x")
  assert lines[fc6 + 1 : fc6 + 5] == [
    "images gathered over y",
    "inputs: partial sums summed over x",
    "fc7    all     inputs: partial sums summed over y",
    "fc8    all     inputs: partial sums summed over x",
  ]
  assert "loss   all     features gathered over y" in lines
  sent = "inputs: partial sums scattered to fc7's images over x"
  assert sent in print_layout(SCATTERED)


def test_overlap_that_does_nothing_is_said():
  layout = dataclasses.replace(
    catalog.TWO_COLUMN,
    layers={
      "conv4": catalog.Placement(outputs=("column",), overlap_gather=True),
      "fc6": catalog.Placement(inputs=("column",), overlap_gather=True),
      "fc7": catalog.Placement(outputs=("column",), overlap_gather=True),
    },
  )
  program = build.make_program(layout, build.FULL_NETWORK)
  assert summary.describe_idle_overlaps(program) == [
    "overlap_gather does nothing in conv4 (reads its own column), fc6 (gathers "
    "no features)"
  ]
  # With one device along the axis, nothing is gathered at all.
  program = build.make_program(
    build.with_mesh(layout, column=1), build.FULL_NETWORK
  )
  (line,) = summary.describe_idle_overlaps(program)
  assert "fc6, fc7 (gathers no features)" in line
  program = build.make_program(catalog.TWO_COLUMN, build.FULL_NETWORK)
  assert summary.describe_idle_overlaps(program) == []


def test_gather_of_images_is_no_gather_of_features():
  fc = catalog.Placement(
    batch=("data",), outputs=("model",), overlap_gather=True
  )
  layout = dataclasses.replace(catalog.ONE_WEIRD_TRICK, fc=fc)
  program = build.make_program(layout, build.FULL_NETWORK)
  assert program.arrivals["fc6"] == ("images gathered over model",)
  assert summary.describe_idle_overlaps(program) == [
    "overlap_gather does nothing in fc6 (gathers no features)"
  ]


def test_features_that_are_not_gathered_last_do_not_overlap():
  layout = catalog.Layout(
    name="features_first",
    mesh={"x": 2, "y": 2},
    conv=catalog.Placement(batch=("y",), outputs=("x",)),
    fc=catalog.Placement(outputs=("x",), overlap_gather=True),
  )
  program = build.make_program(layout)
  assert program.arrivals["fc6"] == (
    "features gathered over x",
    "images gathered over y",
  )
  assert summary.describe_idle_overlaps(program) == [
    "overlap_gather does nothing in fc6 (does not gather features last)"
  ]


def test_layers_repeated_over_several_axes_are_counted_once():
  layout = catalog.Layout(
    name="repeated",
    mesh={"a": 2, "b": 2, "one": 1},
    conv=catalog.Placement(batch=("a", "b")),
    fc=catalog.Placement(batch=("a",)),
    layers={"fc8": catalog.Placement()},
  )
  program = build.make_program(layout, build.FULL_NETWORK)
  assert summary.describe_repeated(program) == [
    "computed 2 times, once on each device of axis 'b': fc6, fc7",
    "computed 4 times, once on each device of axes 'a' and 'b': fc8",
  ]


def test_few_bytes_are_not_called_megabytes():
  # Only the loss is summed: over the pictures of an axis that splits these.
  program = build.make_short_program("two_column")
  loss = build.make_collective(4, layer="loss", tensor="activation")
  program = dataclasses.replace(
    program, plan=(dataclasses.replace(loss, axes=("column",)),)
  )
  text = print_tables(program)
  assert text.endswith("in all, one device sends 16 B in a step\n")
  assert "axis column: 2 devices, 16 B sent along it" in str(
    summary.describe_axes(program)
  )


def test_traced_and_compiled_bytes_are_shown_where_they_differ():
  program = build.make_program(
    *(catalog.TWO_COLUMN, build.FULL_NETWORK, build.FULL_AUGMENTATION)
  )
  lines = [
    audit.Line(
      planned=planned,
      traced_bytes=planned.sent_bytes,
      compiled_bytes=planned.sent_bytes,
    )
    for planned in program.plan
  ]
  assert "compiled" not in print_tables(program, lines)
  lines[0] = dataclasses.replace(lines[0], compiled_bytes=1_000_000)
  *_, ((conv3, *_), _, _) = read_tables(print_tables(program, lines))
  assert (conv3["MB planned"], conv3["compiled"]) == ("0.692", "1.000")


def test_layout_of_a_config_outside_the_package_is_inspected(own_config):
  picture = own_config.parent / "pairs.svg"
  out = run_well("inspect", f"--config={own_config}", f"--picture={picture}")
  assert "layout pairs, mesh pair=2, member=2" in out
  assert "exchanges of the plan and no others" in out
  # Gradients are summed over pairs; a config of its own orders its axes.
  assert "axis pair: 2 devices, " in out
  assert "slowest first: pair, member; by these bytes: member, pair" in out
  assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize("format", ["table", "json"])
def test_time_of_each_layer_is_predicted_in_the_order_of_the_mesh(
  own_config, format
):
  picture = own_config.parent / "hosts.svg"
  out = run_well(
    "inspect",
    *(f"--config={own_config}", "--machine=h100_2x4", "--hosts=2x2"),
    *(f"--picture={picture}", f"--format={format}"),
  )
  assert "<!-- host 0 -->" in picture.read_text()
  if format == "table":
    # As the config orders the axes, and not by their bytes.
    lines = (
      "axis pair: 2 devices, between hosts, over 100 Gb/s network",
      "axis member: 2 devices, inside a host, over NVLink 4",
      " 1     1     0 to 1 ",
    )
    shown = out.splitlines()
    assert not set(lines) - set(shown), out
    sums = [line for line in shown if line.startswith(" sum ")]
    total = number(sums[-1].split()[-1])
    ((shortest, longest),) = re.findall(r"a step: (.+)\.\.(.+) ms, if", out)
    assert number(shortest) < number(longest) == total
    return
  found = json.loads(out)["predicted"]
  assert found["machine"] == "h100_2x4"
  assert found["hosts"]["axes_between"] == {"pair": 2, "member": 1}
  assert found["overlapped_seconds"] < found["seconds"]
  layers = [
    sum(seconds for part, seconds in layer.items() if part != "overlapped")
    for layer in found["layers"].values()
  ]
  total = found["augmentation_seconds"] + sum(layers)
  assert total == pytest.approx(found["seconds"], rel=1e-9)


# What is wrong -> flags, words of the error.
BAD_FLAGS = {
  "axis that a changed layout lacks": (
    ["--config={own}", "--config.layout.conv2.fsdp=('sister',)"],
    "error: conv2 splits its weights over axis 'sister'",
  ),
  "own layout with the name of a preset": (
    ["--config={own}", "--config.layout.name=two_column"],
    "a layout of its own under the name 'two_column'",
  ),
  "picture of another kind": ([CONFIG, "--picture=a.pdf"], "a.pdf"),
  "topology": ([CONFIG, "--topology=v5e:2"], "unknown topology 'v5e:2'"),
  "type": ([CONFIG, "--config.exchange_dtype=half"], "float32, bfloat16"),
  "format": ([CONFIG, "--format=yaml"], "format"),
  "hosts without a machine": (
    [CONFIG, "--hosts=1x2"],
    "--hosts=1x2 says nothing without a machine",
  ),
  "hosts of other devices": (
    [CONFIG, "--machine=dgx_h100", "--hosts=2x2"],
    "--hosts=2x2 are 4 devices, but layout 'two_column' has 2 (column=2). Set "
    "--hosts or config.layout.mesh.",
  ),
  "too few devices": (
    [CONFIG, "--simulate_devices=1"],
    "are 1 (cpu). Set config.layout.mesh lower, or simulate them on the CPU "
    "with --simulate_devices=2.",
  ),
}


@pytest.fixture(scope="module")
def bad_flags(own_config, tmp_path_factory):
  """How the commands with bad flags end."""
  tmp = tmp_path_factory.mktemp("bad")
  cases = []
  for number, (flags, _) in enumerate(BAD_FLAGS.values()):
    (tmp / f"here{number}").mkdir()
    flags = [flag.format(own=own_config) for flag in flags]
    cases.append(("inspect", flags, tmp / f"here{number}"))
  ended = processes.run_forked(cases, tmp)
  return dict(zip(BAD_FLAGS, ended, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flag_ends_in_one_line(case, bad_flags):
  code, _, errors = bad_flags[case]
  assert code == 1
  (line,) = errors.strip().splitlines()
  assert line.startswith("error: ") and BAD_FLAGS[case][1] in line


@pytest.mark.slow
def test_verify_leaves_out_what_comes_to_the_same():
  out = run_well(
    *("verify", SHORT, "--config.batch_size=8", "--config.network.width=0.125"),
    "--layouts=two_column,two_column_data",
    "--devices=2",
  )
  lines = [line for line in out.splitlines() if line.endswith("  kept")]
  # Not two_column_data with one device along data.
  (one, other) = lines
  assert re.match(r"two_column +column=2 ", one)
  assert re.match(r"two_column_data +data=2, column=1 ", other)
  assert "left out: 1 more layouts and meshes" in out


@pytest.mark.slow
def test_compare_lists_planned_and_compiled_bytes():
  out = run_well(
    "compare",
    *("--config=configs/one_device.py", "--config.network.width=0.125"),
    *("--layouts=two_column,data_parallel", "--devices=2", "--format=json"),
  )
  rows = json.loads(out)["rows"]
  assert [row["layout"] for row in rows] == ["two_column", "data_parallel"]
  for row in rows:
    assert row["agrees"] and row["planned_bytes"] == row["compiled_bytes"]
    assert row["memory_bytes"] > 0


def test_topology_is_checked_before_libtpu_is_asked():
  for name in ("v5e", "v5e:2x4x2", "v3:2x2", "v5p:2x2", "v5e:0x4"):
    with pytest.raises(ValueError, match=f"unknown topology '{name}'"):
      mesh.find_topology_devices(name)


@pytest.mark.slow
def test_compare_reports_the_memory_that_inspect_reports():
  flags = (SHORT, "--config.network.width=0.25", "--format=json")
  inspected = json.loads(run_well("inspect", *flags))
  # Also where more devices are simulated than the mesh has.
  flags += ("--layouts=two_column,two_column_data", "--devices=2,4")
  compared = json.loads(run_well("compare", *flags))
  (memory,) = [
    row["memory_bytes"]
    for row in compared["rows"]
    if row["layout"] == "two_column"
  ]
  assert memory == inspected["memory"]["peak"]

"""A machine file: what the planner asks for is what was measured."""

import collections
import dataclasses
import json
import random
import types

import jax
import numpy as np
import pytest

from alexnet_jax.bench import (
  links,
  machine,
  parts,
  peak,
  pieces,
  report,
  turns,
)
from alexnet_jax.cli import command
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import catalog, check, plan
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from tests import build, fake_group, processes
from tests.planner import machines


def draw_layouts(network, mesh, rng, count):
  """Layouts whose layers each split along every axis, or not."""
  found = []
  while len(found) < count:
    layers = {}
    for layer in network.layers:
      axes = collections.defaultdict(tuple)
      for axis in mesh:
        if field := rng.choice(("batch", "outputs", "inputs", None)):
          axes[field] += (axis,)
      layers[layer.name] = layout_lib.Placement(**axes)
    layout = layout_lib.Layout(name="drawn", mesh=mesh, layers=layers)
    try:
      check.check(layout, network, batch_size=8)
      plan.choose_routes(network, layout, batch_size=8)
    except ValueError:
      continue
    found.append(layout)
  return found


@pytest.mark.parametrize(
  ("mesh", "least"),
  [({"x": 2}, 1.0), ({"x": 4}, 1.0), ({"x": 2, "y": 2}, 0.3)],
)
def test_what_is_measured_costs_that_in_every_layout(mesh, least):
  network = build.TINY_NETWORK
  devices = int(np.prod([*mesh.values()]))
  layout = build.with_mesh(catalog.find("data_parallel"), data=devices)
  found = parts.find_parts(build.make_program(layout))
  rng = random.Random(0)
  known = {
    (part.what, part.geometry, part.work): {
      name: rng.uniform(0.1, 1.0)
      for name in (
        (parts.FORWARD, parts.BACKWARD)
        if part.what == "rest"
        else part.functions
      )
    }
    for part in found
  }
  assert len(known) == len(found)  # each once
  measured = [
    machine_lib.Measured(
      what=what,
      geometry=geometry,
      dtype="float32",
      work=dict(zip(machine_lib.PARTS[what].work, work, strict=True)),
      seconds=seconds,
    )
    for (what, geometry, work), seconds in known.items()
  ]
  workload = price.Workload(network=network, batch_size=8, stored_size=72)
  pricer = price.Pricer(
    machines.make_machine(machines.make_link(), measured=tuple(measured)),
    workload,
  )
  find, asked = pricer._seconds, []
  pricer._seconds = lambda *about: asked.append(about) or find(*about)
  for layout in draw_layouts(network, mesh, rng, 20):
    loads = workload.find_loads(layout)
    for layer in network.layers:
      pricer.price_layer(layer, loads[layer.name])
    pricer.price_augmentation(loads[network.layers[0].name].images)
  matched = collections.Counter()
  for what, geometry, work, which in asked:
    if seconds := known.get((what, geometry, work)):
      matched[what] += 1
      assert find(what, geometry, work, which) == pytest.approx(
        seconds[which], rel=1e-6
      )
  of_kind = collections.Counter(what for what, *_ in asked)
  # Only collectives ask for transposes.
  assert set(matched) == set(machine_lib.PARTS) - {"transpose"}
  for what in ("product", "rest"):
    assert matched[what] >= least * of_kind[what], (what, matched, of_kind)


@pytest.fixture
def quick(monkeypatch):
  """Few sizes, and of each kind of part the first that there is."""
  monkeypatch.setattr(turns, "SHORTEST_SECONDS", 1e-9)
  monkeypatch.setitem(peak._SIDES, "cpu", 64)
  monkeypatch.setattr(peak, "_CPU_BYTES", 2**20)
  monkeypatch.setattr(links, "SENT_BYTES", {4: 1, 2**14: 1, 2**16: 1})
  find = parts.find_parts

  def find_first(program):
    found = {}
    for part in find(program):
      found.setdefault((part.what, part.geometry == "fc"), part)
    return [*found.values()]

  monkeypatch.setattr(parts, "find_parts", find_first)


def measure(path, program, **options):
  return machine.measure(
    program,
    {},
    rounds=1,
    path=str(path),
    group=group_lib.alone(),
    console=command.make_console(),
    **options,
  )


def test_file_is_a_machine_and_grows(quick, tmp_path, monkeypatch, capsys):
  path = tmp_path / "mine.json"
  program = build.make_short_program("two_column")
  network = build.SHORT_NETWORK
  found = measure(path, program)
  loaded = machine_lib.load(str(path))
  assert loaded.devices == 2 and loaded.platform == "cpu"
  assert "measured 20" in loaded.sources["memory_bytes"]
  assert "batch 8, median of 1 rounds" in loaded.description
  assert {one.what for one in loaded.measured} == {*machine_lib.PARTS} - {
    "random"
  }  # a network without dropout
  (link,) = loaded.links
  assert (link.name, link.joins_devices) == ("inside a process", 2)
  assert set(link.software) == set(machine_lib.COLLECTIVES)
  # The link is as fast as the best of them, but for rounding.
  least = min(one.seconds_per_byte for one in link.software.values())
  assert least == pytest.approx(0, abs=1e-20)
  assert found.measured == len(loaded.measured) and found.kept == 0
  # It prices a layout at once.
  workload = price.Workload(network=network, batch_size=8)
  assert (
    price.predict(price.Pricer(loaded, workload), program.layout).seconds > 0
  )
  json.dumps(report.to_data(found))
  assert len(found.tables()) == 2 and str(path) in found.lines()[-1]
  assert "parts of a step to measure" in capsys.readouterr().out

  # Another batch is added, and what is measured again is replaced.
  monkeypatch.setattr(
    parts.Timer,
    "time_part",
    lambda _, part: {name: 7.0 for name in machine_lib.PARTS[part.what].passes},
  )
  size = len(loaded.measured)
  more = measure(path, dataclasses.replace(program, batch_size=16))
  assert more.kept > 0
  both = machine_lib.load(str(path))
  assert len(both.measured) == more.kept + more.measured > size
  assert measure(path, program).kept == len(both.measured) - size
  last = machine_lib.load(str(path))
  assert len(last.measured) == len(both.measured)
  assert {x for one in last.measured for x in one.seconds.values()} == {7.0}


def test_failure_leaves_the_file_as_it_was(quick, tmp_path, monkeypatch):
  path = tmp_path / "mine.json"
  program = build.make_short_program("two_column")
  path.write_text("{}")
  with pytest.raises(ValueError, match="mine.json lacks"):
    measure(path, program)
  assert path.read_text() == "{}"
  before = (machine_lib.FOLDER / "two_core_cpu.json").read_text()
  path.write_text(before)

  def fail(*_):
    raise OSError("out of memory")

  monkeypatch.setattr(parts.Timer, "time_part", fail)
  with pytest.raises(OSError, match="out of memory"):
    measure(path, program)
  assert path.read_text() == before and [*tmp_path.iterdir()] == [path]


def test_file_of_other_devices_and_a_rate_without_a_link_are_refused(
  quick, tmp_path, monkeypatch
):
  path = tmp_path / "mine.json"
  monkeypatch.setattr(parts, "find_parts", lambda program: [])
  monkeypatch.setattr(machine, "_find_utilization", lambda *_: {"conv": 0.5})
  measure(path, build.make_short_program("one_device"))
  (link,) = machine_lib.load(str(path)).links
  assert link.joins_devices == 1 and not link.software
  before = path.read_text()
  two = build.make_short_program("two_column")
  with pytest.raises(
    ValueError, match=r"of 1 devices \(cpu\), and these are 2"
  ):
    measure(path, two)
  with pytest.raises(ValueError, match="Leave --link_gbits out"):
    measure(tmp_path / "other.json", two, link_gbits=1.0)
  assert path.read_text() == before


def test_collectives_cost_what_was_measured(monkeypatch):
  kinds = machine_lib.COLLECTIVES
  first = {kind: 1e-4 * (i + 1) for i, kind in enumerate(kinds)}
  slopes = {kind: 1e-9 * (i + 1) for i, kind in enumerate(kinds)}
  monkeypatch.setattr(links, "_time_collectives", lambda *_: (first, slopes))
  timer = types.SimpleNamespace(group=group_lib.alone())

  def number(value, source):
    return {"value": value, "source": source}

  (fields,), _ = links.measure(timer, jax.devices()[:4], None, number)
  link = machine_lib._to_link(machine_lib._Fields(fields, "", "", {}))
  machine = machines.make_machine(link)
  pricer = price.Pricer(
    machine, price.Workload(network=build.TINY_NETWORK, batch_size=8)
  )
  layout = build.with_mesh(catalog.find("data_parallel"), data=4)
  nested = price.Nested(layout, ("data",), machine.links)
  for kind in kinds:
    one = build.make_collective(2**20, kind, devices=4)
    assert pricer.price_collective(one, nested).seconds == pytest.approx(
      first[kind] + one.sent_bytes * slopes[kind]
    )


def test_slowest_process_counts():
  groups = fake_group.make_groups("a", "b")

  def find(group):
    timer = object.__new__(parts.Timer)
    timer.group, timer._count = group, 0
    return timer.find_slowest([1.0 + group.index, 5.0 - group.index])

  assert fake_group.in_all(groups, find) == [[2.0, 5.0]] * 2


@dataclasses.dataclass(frozen=True, order=True)
class Device:
  id: int
  process_index: int
  platform: str = "cpu"


def test_levels_are_hosts_their_processes_and_these_devices():
  hosts = ("b", "a", "b", "a")
  devices = [Device(number, number // 2) for number in range(8)]
  mesh = links.make_level_mesh(devices[::-1], hosts)
  assert dict(mesh.shape) == {"hosts": 2, "processes": 2, "devices": 2}
  of_host = [[hosts[d.process_index] for d in row.flat] for row in mesh.devices]
  assert of_host == [["b"] * 4, ["a"] * 4]
  assert [d.process_index for d in mesh.devices[1, :, 0]] == [1, 3]
  for wrong in ((devices[:7], hosts), (devices, ("a", "a", "a", "b"))):
    with pytest.raises(ValueError, match="expected equal numbers"):
      links.make_level_mesh(*wrong)


@pytest.mark.parametrize("kind", machine_lib.COLLECTIVES)
@pytest.mark.parametrize("devices", [2, 3, 8])
def test_collectives_send_what_they_are_to_send(kind, devices):
  for wanted in (4, 2**20):
    elements, sent = links.size_collective(kind, devices, wanted)
    assert elements % devices**2 == 0
    assert wanted <= sent <= wanted + 8 * devices**2


def test_wrong_flags_end_in_one_line(tmp_path):
  config = "--config=tests/short_network.py:two_device"
  cases = {
    "--what=machine --json=no/mine.json": "'no' is not a folder",
    "--what=layers --json=mine.json": "but --what=layers does not use it",
  }
  running = [
    processes.open_process(
      ["python", "-m", "alexnet_jax.bench", config, *flags.split()],
      tmp_path / "cache",
    )
    for flags in cases
  ]
  for ended, expected in zip(
    processes.finish(running), cases.values(), strict=True
  ):
    assert ended.code == 1, ended
    (line,) = ended.errors.strip().splitlines()
    assert line.startswith("error: ") and expected in line


def test_rest_of_a_layer_is_what_follows_its_product(key):
  program = build.make_short_program("two_column")
  piece = pieces.cut_layers(program)[1]
  keys = iter(jax.random.split(key, 9))
  parameters, x = jax.tree.map(
    lambda block: jax.random.normal(next(keys), block.shape),
    (piece.parameters, piece.x),
  )
  product = piece.multiply(x, parameters["kernel"])
  small = {"bias": parameters["bias"]}
  run, blocks = piece.rest(piece.x.shape[0])[parts.FORWARD]
  assert blocks[2] == piece.product
  # The same operations; a compiler may fuse them otherwise.
  np.testing.assert_allclose(
    run(small, {}, product, {}), piece.run(parameters, {}, x, {}), rtol=1e-6
  )


@pytest.mark.slow
def test_processes_measure_their_link_together(tmp_path):
  path = tmp_path / "mine.json"
  running = processes.start(
    tmp_path / "run",
    2,
    [
      *("--config=tests/short_network.py:two_device", f"--json={path}"),
      *("--what=machine", "--rounds=1", "--link_gbits=1000"),
      *("--config.network.width=0.125", "--config.batch_size=4"),
      "--simulate_devices=1",
    ],
    module="bench",
  )
  first, second = processes.finish(running)
  assert (first.code, second.code) == (0, 0), (first.errors, second.errors)
  assert "parts of a step measured" in first.out and not second.out
  loaded = machine_lib.load(str(path))
  (link,) = loaded.links
  assert link.name == "inside a host" and link.bytes_per_second == 125e9
  # Faster than any loopback device: software sets the pace.
  assert min(one.seconds_per_byte for one in link.software.values()) > 0

"""The command, on a network of four layers and two hosts."""

import dataclasses
import io
import json
import sys

import pytest
import rich.progress

from alexnet_jax.cli import command, flag_parsing
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.planner import search as search_lib
from alexnet_jax.search import chart, report, write
from alexnet_jax.settings import build, settings
from tests import processes, short_network
from tests.planner import machines

PLACED = layout_lib.Placement(batch=("data",))


@pytest.fixture(scope="module")
def config():
  config = short_network.get_config("one_device")
  config.batch_size = 32
  return config


@pytest.fixture(scope="module")
def answer(config):
  machine = machine_lib.load("h100_2x4")
  network, _ = settings.check(config)
  what = build.make_workload(config, network)
  space = search_lib.Space(what, 4)
  pricer = price.Pricer(machine, what)
  kinds = space.find_kinds(pricer)
  links = [link.name for link in machine.links[:1]]
  return report.Answer(
    machine=machine,
    goal=search_lib.Goal(),
    search_seconds=0.1,
    kinds=kinds,
    catalog=report.find_best_meshes(pricer, 4, search_lib.Goal()),
    changes=[
      report.Change(
        link=link,
        most=most,
        found=space.find_change(pricer, kinds[0], link, most),
      )
      for link in links
      for most in report.MOST_FACTORS
    ],
  )


def test_no_layout_is_faster_than_the_first(answer):
  times = [found.prediction.seconds for found in answer.kinds]
  assert times == sorted(times) and len(times) >= 3
  assert times[0] <= min(one.seconds for one in answer.catalog) * (1 + 1e-9)


def test_change_is_the_first_speed_at_which_another_saves_a_hundredth(config):
  network, _ = settings.check(config)
  what = build.make_workload(config, network)
  pricer = price.Pricer(machines.TWO_HOSTS, what)
  space = search_lib.Space(what, 4)
  best = space.find_fastest(pricer)
  changed = 0
  for link in ("bus", "network"):
    for most in report.MOST_FACTORS:
      change = space.find_change(pricer, best, link, most)
      if change is None:
        continue
      changed += 1
      factor, rival = change
      scaled = pricer.scale_link(link, factor)
      own, other = (
        price.predict(scaled, one.layout, order=tuple(one.layout.mesh)).seconds
        for one in (best, rival)
      )
      assert other == pytest.approx(0.99 * own, rel=1e-3)
      # A little nearer to the link's own speed there is none.
      scaled = pricer.scale_link(link, factor**0.98)
      order = tuple(best.layout.mesh)
      own = price.predict(scaled, best.layout, order=order).seconds
      assert space.find_fastest(scaled, bound=0.99 * own * (1 - 1e-6)) is None
  assert changed


@pytest.mark.parametrize(
  ("text", "expected"),
  [(None, 5.0), ("16GB", 16e9), ("40GiB", 40 * 2**30), ("0.5MB", 5e5)],
)
def test_memory_has_a_unit(text, expected):
  assert report.parse_memory(text, 5.0) == expected


@pytest.mark.parametrize("text", ["16", "GB", "0GB", "-1GB", "1e400GB", "xMB"])
def test_memory_without_a_number_or_unit_is_refused(text):
  with pytest.raises(ValueError, match="--memory is .*expected a number above"):
    report.parse_memory(text, 5.0)


def test_map_has_a_cell_for_each_batch_and_speed(config, tmp_path, monkeypatch):
  monkeypatch.setattr(chart, "FACTORS", (0.25, 1.0))
  network, _ = settings.check(config)
  paths = [tmp_path / name for name in ("one.svg", "two.svg")]
  for path in paths:
    with rich.progress.Progress(disable=True) as progress:
      chart.draw(
        build.make_workload(config, network),
        machines.TWO_HOSTS,
        4,
        goal=search_lib.Goal(),
        batch_sizes=[8, 64],
        path=str(path),
        progress=progress,
      )
  one, two = (path.read_text() for path in paths)
  assert one == two and one.startswith("<?xml")
  # Frame, two ticks each way, cells and legend.
  assert one.count('<g id="text_') >= 2 + 2 + 4 + 1


def test_tables_say_where_the_time_goes(answer):
  console = command.make_console(file=io.StringIO())
  report.show(answer, console, top=3)
  text = console.file.getvalue()
  assert "one_weird_trick" in text and "another layout saves 1 %" in text
  for layer in answer.best.prediction.workload.network.layers:
    assert f"\n {layer.name}" in text
  assert max(len(line.rstrip()) for line in text.splitlines()) <= 132, text
  found = json.loads(command.to_json(report.to_json(answer)))
  assert found["kinds"][0].items() >= answer.best.prediction.to_json().items()


def test_written_config_has_the_layout_and_all_else(
  answer, config, tmp_path, monkeypatch
):
  monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as it is by itself
  path = tmp_path / "the best.py"
  write.write_config(str(path), config, answer)
  assert [*tmp_path.iterdir()] == [path]
  assert f"main --config='{path}'\n" in path.read_text()
  (tmp_path / "plain").touch()
  assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
  written = flag_parsing.load_config(str(path), flag="config")
  network, layout = settings.check(written)
  expected, _ = settings.check(config)
  assert network == expected and written.batch_size == 32
  assert tuple(layout.mesh) == tuple(answer.best.layout.mesh)
  assert [layout.placement(row) for row in network.layers] == [
    answer.best.layout.placement(row) for row in network.layers
  ]
  # The axes are nested as the search has placed them.
  assert settings.keeps_order(written, layout)
  assert isinstance(layout, layout_lib.Layout)


@pytest.mark.parametrize(
  "placements",
  [
    {},  # of a small network: nothing is split
    {"conv": PLACED},
    {"conv": PLACED, "fc": PLACED},
    {"layers": {"conv1": PLACED}},
  ],
)
def test_layout_is_written_by_kind_where_layers_are_alike(
  placements, answer, config, tmp_path
):
  best = answer.best.prediction
  network = best.workload.network
  layout = layout_lib.Layout(name="mine", mesh={"data": 4}, **placements)
  layers = {row.name: layout.placement(row) for row in network.layers}
  # As a search places them, one by one.
  placed = layout_lib.Layout(name="mine", mesh={"data": 4}, layers=layers)
  found = dataclasses.replace(
    answer.best, prediction=dataclasses.replace(best, layout=placed)
  )
  path = tmp_path / "best.py"
  answer = dataclasses.replace(answer, kinds=[found])
  write.write_config(str(path), config, answer)
  _, written = settings.check(
    flag_parsing.load_config(str(path), flag="config")
  )
  for row in network.layers:
    assert written.placement(row) == layers[row.name]


def test_wrong_flags_end_in_one_line(tmp_path):
  cases = [
    (["--machine=k20", "--memory=3"], "--memory is '3', expected a number"),
    (["--machine=k20", "--memory=1MB"], "the least is 0.0"),
    (["--machine=dgx_h100", "--devices=12"], "12 devices do not fill blocks"),
    (["--machine=k20", "--write=a.txt"], "does not end in .py. Set --write"),
    (
      ["--machine=k20", "--write=a.py", "--batch_sizes=64,128"],
      "--write is for one batch",
    ),
  ]
  config = f"--config={processes.ROOT}/configs/one_device.py"
  folders = [tmp_path / str(number) for number in range(len(cases))]
  for folder in folders:
    folder.mkdir()
  ended = processes.run_forked(
    [
      ("search", [config, *arguments], folder)
      for (arguments, _), folder in zip(cases, folders, strict=True)
    ],
    tmp_path,
  )
  for (_, message), (code, out, errors) in zip(cases, ended, strict=True):
    assert code == 1 and not out, errors
    assert message in errors and errors.count("\n") == 1, errors
  assert not [*tmp_path.glob("*/a.*")]

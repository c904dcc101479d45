import io
import json
import re
import tempfile

import pytest

from alexnet_jax.cli import command
from alexnet_jax.compare import comparison, tables
from alexnet_jax.partition import catalog
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from tests import build, processes

EPOCH = tables.Epoch(images=1_000_000, dataset="pictures")


def make_rows(machine, batch_size=128, devices=8):
  workload = price.Workload(network=build.FULL_NETWORK, batch_size=batch_size)
  pricer = price.Pricer(machine, workload)
  return [
    comparison.make_row(workload, layout, pricer=pricer)
    for layout in comparison.find_layouts(workload, catalog.LAYOUTS, devices)
  ]


def show(table) -> str:
  console = command.make_console(file=io.StringIO())
  command.print_table(console, table)
  return console.file.getvalue()


@pytest.mark.parametrize(
  "name", ["dgx1_v100", "dgx_h100", "p100_4x4", "rtx2080ti", "tpu_v5e"]
)
def test_tables_fit_into_120_columns(name):
  machine = machine_lib.load(name)
  rows = make_rows(machine, 4096, machine.devices)
  for table in (
    tables.make_bytes_table("alexnet2012", rows),
    tables.make_time_table(rows, machine, EPOCH),
  ):
    lines = show(table).splitlines()
    lines = [line for line in lines if not line.startswith("more than")]
    assert max(len(line.rstrip()) for line in lines) <= 120, show(table)


def test_times_follow_from_the_columns_shown():
  machine = machine_lib.load("h100_2x4")
  rows = make_rows(machine)
  text = show(tables.make_time_table(rows, machine, EPOCH))
  shown = [line for line in text.splitlines() if re.match(r"\w+ +\w+=\d", line)]
  assert len(shown) == len(rows)
  for line, row in zip(shown, rows, strict=True):
    numbers = line.partition(row.layout.name)[2].rpartition("=")[2].split()[1:]
    step, *others = numbers
    shortest, longest = map(float, step.split(".."))
    compute, exchange, gradients, inside, between, images, hours = (
      float(number.replace(",", "")) for number in others
    )
    assert shortest < longest
    total = compute + exchange + gradients
    assert total == pytest.approx(longest, abs=0.02)
    # Each byte that is sent crosses one level.
    assert inside + between == pytest.approx(row.planned_bytes / 1e6, abs=0.02)
    assert images == pytest.approx(128e3 / longest, rel=0.01)
    assert hours == pytest.approx(8 * 1e6 / images / 3600, rel=0.01)


def test_layouts_that_need_more_memory_than_there_is_are_named():
  machine = machine_lib.load("dgx1_v100")
  rows = make_rows(machine, 128)
  assert "more than" not in show(tables.make_time_table(rows, machine, EPOCH))
  rows = make_rows(machine, 32_768)
  text = show(tables.make_time_table(rows, machine, EPOCH))
  assert "more than the 16,000.00 MB of a device: " in text
  assert "data_parallel (data=8)" in text[text.index("more than") :]


def test_memory_is_predicted_where_nothing_is_compiled():
  rows = make_rows(machine_lib.load("dgx_h100"))
  text = show(tables.make_bytes_table("x", rows))
  assert f"~{rows[0].prediction.memory_bytes / 1e6:,.2f}" in text
  assert "~: predicted, where nothing is compiled" in text


def run(*flags):
  return processes.run(
    [
      *("python", "-m", "alexnet_jax.compare", "--nocompile"),
      *("--config=configs/one_device.py", *flags),
    ],
    tempfile.gettempdir(),
    timeout=300,
  )


def test_hosts_give_the_devices_and_the_fastest_comes_first():
  ended = run(
    *("--machine=h100_2x4", "--hosts=2x2", "--batch_sizes=64,1024"),
    "--format=json",
  )
  assert ended.code == 0, ended.errors
  found = json.loads(ended.out)
  assert found["machine"] == "h100_2x4" and found["epoch"]["images"] > 0
  rows = found["rows"]
  assert {row["devices"] for row in rows} == {4}
  for batch in (64, 1024):
    seconds = [
      row["predicted"]["seconds"] for row in rows if row["batch"] == batch
    ]
    assert len(seconds) > 2 and seconds == sorted(seconds)
  assert {row["memory_bytes"] for row in rows} == {None}


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (
      ["--machine=dgx_h100", "--hosts=2x2", "--devices=4,8"],
      "--devices has 8, but --hosts=2x2 are 4 devices. Set --devices or",
    ),
    (
      ["--machine=k20", "--config.compute_dtype=bfloat16"],
      "machine k20 has no compute.peak_flops_per_second for bfloat16",
    ),
  ],
)
def test_machine_that_does_not_fit_ends_in_one_line(flags, message):
  ended = run(*flags)
  assert ended.code == 1 and ended.errors.startswith("error: ")
  assert message in ended.errors
  assert len(ended.errors.strip().splitlines()) == 1

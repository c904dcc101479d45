"""The comparison with other programs measures as it says it does."""

import json
import pathlib
import statistics
import subprocess
import sys
import textwrap

import pytest

from benchmarks import peer_probe, peer_tables, peer_variants, turns

# A worker whose seconds are given; it writes its name down at each turn.
SCRIPTED = """
  import json, sys
  name, log, seconds = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
  print(json.dumps({"ready": True, "version": name}), flush=True)
  for line, of_turn in zip(sys.stdin, seconds):
    with open(log, "a") as file:
      file.write(name)
    answer = {"seconds": of_turn, "loss": 7.0, "idle_cpu_seconds": of_turn / 10}
    print(json.dumps(answer), flush=True)
"""
# It counts its steps: each is a unit of loss.
COUNTING = """
  from benchmarks import worker

  def make(start):
    taken = [start]

    def take_steps(count):
      print("a library talks")
      taken[0] += count
      return float(taken[0])

    return take_steps, {"version": "counting"}

  worker.serve(make)
"""


def python(code, *arguments):
  return turns.Command(
    arguments=(sys.executable, "-c", textwrap.dedent(code), *arguments)
  )


def scripted(tmp_path, name, *seconds):
  return python(SCRIPTED, name, str(tmp_path / "log"), json.dumps(seconds))


def measure(commands, *, rounds, told=None, limit_seconds=30.0):
  told = [] if told is None else told
  return turns.measure(
    commands,
    reference="a",
    rounds=rounds,
    untimed=0,
    timed=1,
    limit_seconds=limit_seconds,
    tell=told.append,
  )


def test_workers_take_turns_in_both_orders(tmp_path):
  names = "abc"
  commands = {name: scripted(tmp_path, name, *[1.0] * 4) for name in names}
  found = measure(commands, rounds=4)
  assert (tmp_path / "log").read_text() == "abccbaabccba"
  assert list(found) == [*names]
  assert [found[name].facts for name in names] == [
    {"version": name} for name in names
  ]


def test_ratios_are_those_of_the_same_round(tmp_path):
  ours, theirs = [1.0, 4.0, 2.0], [2.0, 2.0, 6.0]
  commands = {
    "a": scripted(tmp_path, "a", *ours),
    "b": scripted(tmp_path, "b", *theirs),
  }
  found = measure(commands, rounds=3)
  assert found["a"].seconds == ours and found["a"].ratios == [1.0] * 3
  assert found["b"].ratios == [2.0, 0.5, 3.0]
  assert found["b"].ratio() == 2.0  # the medians alone would give 1
  assert found["b"].idle_cpu_seconds == pytest.approx(0.6)
  row = peer_tables.Table(8, found).rows()[1]
  assert row == (
    *("b", "4.0", "2,000.0", "2,000.0", "6,000.0"),
    *("2.00", "0.50", "3.00"),
  )
  twice = found["b"].join(found["b"])
  assert twice.seconds == theirs * 2
  assert twice.ratio() == statistics.median([2.0, 0.5, 3.0] * 2)


DEATHS = {
  "at the start": (
    "import sys; sys.exit('no such\\n device')",
    "b ended with code 1; its last output: device",
  ),
  "in words": ("print('Hello')", "b says 'Hello', expected JSON; its last"),
  "hung": ("import time; time.sleep(60)", "b has not answered for 2 s; its"),
  "killed": (
    "import os; os.write(2, b'so far'); os.kill(os.getpid(), 9)",
    "b ended with code -9; its last output: so far",
  ),
  "not finite": (
    """
      import sys
      print('{"ready": true}', flush=True)
      sys.stdin.readline()
      print('{"seconds": 1, "loss": NaN, "idle_cpu_seconds": 0}', flush=True)
    """,
    "b has a loss of nan; its last output: nothing",
  ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_worker_that_fails_is_named_and_the_others_go_on(death, tmp_path):
  code, message = DEATHS[death]
  told = []
  commands = {
    "a": scripted(tmp_path, "a", 1.0, 1.0),
    "b": python(code),
    "c": scripted(tmp_path, "c", 3.0, 3.0),
  }
  found = measure(commands, rounds=2, told=told, limit_seconds=2.0)
  assert found["c"].ratios == [3.0, 3.0]
  assert found["b"].error.startswith(message)
  assert found["b"].error in told and "\n" not in found["b"].error
  table = peer_tables.Table(8, found)
  assert table.rows()[1][:2] == ("b", "failed")
  assert f"b: {found['b'].error}" in table.lines()


def test_worker_that_ends_between_its_turns_keeps_its_rounds(tmp_path):
  commands = {
    "a": scripted(tmp_path, "a", 1.0, 1.0, 1.0),
    "b": scripted(tmp_path, "b", 2.0),
  }
  found = measure(commands, rounds=3)
  assert found["b"].seconds == [2.0] and len(found["a"].seconds) == 3
  assert found["b"].error == "b ended with code 0; its last output: nothing"


def test_nothing_is_compared_with_a_reference_that_fails(tmp_path):
  commands = {"a": python("1 / 0"), "b": scripted(tmp_path, "b", 2.0)}
  with pytest.raises(turns.WorkerError, match="a ended.*ZeroDivisionError"):
    measure(commands, rounds=1)


def test_worker_warms_up_and_takes_the_steps_it_is_told():
  command = python(COUNTING, '{"start": 100}')
  worker = turns.Worker("counting", command, limit_seconds=30.0)
  assert worker.facts.pop("start_seconds") >= 0
  assert worker.facts == {"version": "counting", "first_loss": 101.0}
  assert worker.take(untimed=0, timed=1)["loss"] == 104.0  # 3 were warm
  assert worker.take(untimed=5, timed=20)["loss"] == 129.0
  worker.close()


def test_variants_are_chosen_with_those_of_ours_beside_them():
  chosen = peer_variants.choose("gpu", ["torch_nchw*"], kept_heap=False)
  assert list(chosen) == [
    *("ours", "torch_nchw_tf32", "ours_float32", "torch_nchw_float32")
  ]
  assert peer_variants.group(chosen, None) == [
    ("ours", ["torch_nchw_tf32"]),
    ("ours_float32", ["torch_nchw_float32"]),
  ]
  with pytest.raises(ValueError, match="--variants has 'tf', .*none of ours"):
    peer_variants.choose("cpu", ["tf"], kept_heap=False)
  with pytest.raises(ValueError, match="on 'tpu' here, expected one of cpu"):
    peer_variants.choose("tpu", [], kept_heap=False)


def test_heap_is_kept_for_peers_only_and_few_are_there_at_once():
  chosen = peer_variants.choose(
    "cpu", ["ours", "flax", "torch_nchw"], kept_heap=True
  )
  kept = {name for name, variant in chosen.items() if variant.environment}
  assert kept == {"flax_kept_heap", "torch_nchw_kept_heap"}
  assert peer_variants.group(chosen, 3) == [
    ("ours", ["flax", "flax_kept_heap"]),
    ("ours", ["torch_nchw", "torch_nchw_kept_heap"]),
  ]


def test_missing_pytorch_is_said_with_what_to_do():
  chosen = peer_variants.choose("cpu", ["torch_nchw"], kept_heap=False)
  # A Python that imports nothing but what it is built with.
  missing = peer_probe.find_missing("false", "cpu", chosen)
  assert missing.startswith("not installed: pip install -r requirements-bench")
  table = peer_tables.Table(8, {"torch_nchw": turns.Found(missing=missing)})
  assert table.rows()[0][:2] == ("torch_nchw", "not installed")
  assert f"torch_nchw: {missing}" in table.lines()
  with pytest.raises(ValueError, match="--torch_python is '/no/python'"):
    peer_probe.find_missing("/no/python", "cpu", chosen)


@pytest.mark.slow
def test_command_measures_ours_where_there_is_no_pytorch():
  process = subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.peers", "--format=json"),
      *("--variants=ours_two_column,flax,torch_nchw", "--torch_python=false"),
      *("--batch_sizes=4", "--width=0.125", "--image_size=67"),
      *("--rounds=2", "--steps=3", "--untimed_steps=1"),
    ],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  (table,) = json.loads(process.stdout)["tables"]
  assert table["batch_size"] == 4
  variants = table["variants"]
  assert list(variants) == ["ours", "ours_two_column", "flax", "torch_nchw"]
  assert "not installed" in variants.pop("torch_nchw")["missing"]
  for variant in variants.values():
    assert len(variant["ratios"]) == 2 and min(variant["seconds"]) > 0
    # Random labels of 1,000 classes: ln(1000) is 6.9.
    assert variant["facts"]["first_loss"] == pytest.approx(6.9, abs=0.5)

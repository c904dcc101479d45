"""The comparison of training steps with other programs."""

import json
import statistics
import sys
import textwrap

import pytest

from benchmarks.peers import tables, variants, workers
from tests import processes

# A worker with given seconds; it writes its name to a log at each turn.
SCRIPTED = """
  import json, sys
  name, log, seconds = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
  print(json.dumps({"ready": True, "version": name}), flush=True)
  for line, given in zip(sys.stdin, seconds):
    with open(log, "a") as file:
      file.write(name)
    answer = {"seconds": given, "loss": 7.0, "idle_cpu_seconds": given / 10}
    print(json.dumps(answer), flush=True)
"""
# A worker whose loss counts its steps.
COUNTING = """
  from benchmarks.peers import worker

  def make(start):
    taken = [start]

    def run_steps(count):
      print("a library talks")
      taken[0] += count
      return float(taken[0])

    return run_steps, {"version": "counting"}

  worker.serve(make)
"""


def python(code, *arguments):
  return workers.Command(
    arguments=(sys.executable, "-c", textwrap.dedent(code), *arguments)
  )


def scripted(tmp_path, name, *seconds):
  return python(SCRIPTED, name, str(tmp_path / "log"), json.dumps(seconds))


def measure(tmp_path, commands, *, rounds, log=print, limit_seconds=30.0):
  """Measures commands, or scripted workers with these seconds."""
  limits = {"untimed": 0, "timed": 1, "limit_seconds": limit_seconds}
  commands = {
    name: scripted(tmp_path, name, *given) if isinstance(given, list) else given
    for name, given in commands.items()
  }
  return workers.measure(
    commands, reference="a", rounds=rounds, log=log, **limits
  )


def test_workers_take_turns_in_both_orders(tmp_path):
  found = measure(tmp_path, dict.fromkeys("abc", [1.0] * 4), rounds=4)
  assert (tmp_path / "log").read_text() == "abccbaabccba"
  facts = {name: measured.facts for name, measured in found.items()}
  assert facts == {name: {"version": name} for name in "abc"}
  assert list(found) == [*"abc"]


def test_ratios_are_those_of_the_same_round(tmp_path):
  ours, theirs = [1.0, 4.0, 2.0], [2.0, 2.0, 6.0]
  found = measure(tmp_path, {"a": ours, "b": theirs}, rounds=3)
  assert found["a"].seconds == ours and found["a"].ratios == [1.0] * 3
  assert found["b"].ratios == [2.0, 0.5, 3.0]
  assert found["b"].ratio() == 2.0  # the medians alone would give 1
  assert found["b"].idle_cpu_seconds == pytest.approx(0.6)
  rates = ("4.0", "2,000.0", "2,000.0", "6,000.0")
  row = tables.Comparison(8, found).rows()[1]
  assert row == ("b", *rates, "2.00", "0.50", "3.00")
  twice = found["b"].join(found["b"])
  assert twice.seconds == theirs * 2
  assert twice.ratio() == statistics.median([2.0, 0.5, 3.0] * 2)


DEATHS = {
  "at the start": (
    "import sys; sys.exit('no such\\n device')",
    "b ended with code 1; its last output: device",
  ),
  "in words": ("print('Hello')", "b printed 'Hello', expected JSON; its last"),
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
def test_worker_that_fails_is_named_and_the_others_continue(death, tmp_path):
  code, message = DEATHS[death]
  log = []
  commands = {"a": [1.0, 1.0], "b": python(code), "c": [3.0, 3.0]}
  found = measure(
    tmp_path, commands, rounds=2, log=log.append, limit_seconds=2.0
  )
  assert found["c"].ratios == [3.0, 3.0]
  assert found["b"].error.startswith(message)
  assert found["b"].error in log and "\n" not in found["b"].error
  table = tables.Comparison(8, found)
  assert table.rows()[1][:2] == ("b", "failed")
  assert f"b: {found['b'].error}" in table.lines()


def test_worker_that_ends_between_its_turns_keeps_its_rounds(tmp_path):
  found = measure(tmp_path, {"a": [1.0, 1.0, 1.0], "b": [2.0]}, rounds=3)
  assert found["b"].seconds == [2.0] and len(found["a"].seconds) == 3
  assert found["b"].error == "b ended with code 0; its last output: nothing"


def test_nothing_is_compared_with_a_reference_that_fails(tmp_path):
  with pytest.raises(workers.WorkerError, match="a ended.*ZeroDivisionError"):
    measure(tmp_path, {"a": python("1 / 0"), "b": [2.0]}, rounds=1)


def test_worker_warms_up_and_takes_the_steps_it_is_told():
  command = python(COUNTING, '{"start": 100}')
  worker = workers.Worker("counting", command, limit_seconds=30.0)
  assert worker.facts.pop("start_seconds") >= 0
  assert worker.facts == {"version": "counting", "first_loss": 101.0}
  assert worker.take_turn(untimed=0, timed=1)["loss"] == 104.0  # 3 were warm
  assert worker.take_turn(untimed=5, timed=20)["loss"] == 129.0
  worker.close()


def test_variants_are_chosen_with_those_of_ours_beside_them():
  chosen = variants.choose("gpu", ["torch_nchw*"], kept_heap=False)
  groups = {"ours": "torch_nchw_tf32", "ours_float32": "torch_nchw_float32"}
  assert list(chosen) == [name for pair in groups.items() for name in pair]
  assert variants.group(chosen, None) == [
    (ours, [theirs]) for ours, theirs in groups.items()
  ]
  with pytest.raises(ValueError, match="--variants has 'tf', .*none of ours"):
    variants.choose("cpu", ["tf"], kept_heap=False)
  with pytest.raises(ValueError, match="on 'tpu' here, expected one of cpu"):
    variants.choose("tpu", [], kept_heap=False)


def test_heap_is_kept_for_peers_only_and_few_are_there_at_once():
  names = ["ours", "flax", "torch_nchw"]
  chosen = variants.choose("cpu", names, kept_heap=True)
  kept = {name for name, variant in chosen.items() if variant.environment}
  assert kept == {"flax_kept_heap", "torch_nchw_kept_heap"}
  assert variants.group(chosen, 3) == [
    ("ours", ["flax", "flax_kept_heap"]),
    ("ours", ["torch_nchw", "torch_nchw_kept_heap"]),
  ]


def test_missing_pytorch_is_said_with_what_to_do():
  chosen = variants.choose("cpu", ["torch_nchw"], kept_heap=False)
  # A Python that imports nothing but what it is built with.
  missing = variants.find_missing("false", "cpu", chosen)
  assert missing.startswith("not installed: pip install -r requirements-bench")
  measured = workers.Measured(missing=missing)
  table = tables.Comparison(8, {"torch_nchw": measured})
  assert table.rows()[0][:2] == ("torch_nchw", "not installed")
  assert f"torch_nchw: {missing}" in table.lines()
  with pytest.raises(ValueError, match="--torch_python is '/no/python'"):
    variants.find_missing("/no/python", "cpu", chosen)


@pytest.mark.slow
def test_command_measures_ours_where_there_is_no_pytorch(tmp_path):
  command = ["python", "-m", "benchmarks.peers", "--format=json"]
  command += ["--variants=ours_two_column,flax,torch_nchw"]
  command += ["--torch_python=false", "--batch_sizes=4", "--width=0.125"]
  command += ["--image_size=67", "--rounds=2", "--steps=3", "--untimed_steps=1"]
  ended = processes.run(command, tmp_path)
  assert ended.code == 0, ended.errors
  (table,) = json.loads(ended.out)["tables"]
  assert table["batch_size"] == 4
  variants = table["variants"]
  assert list(variants) == ["ours", "ours_two_column", "flax", "torch_nchw"]
  assert "not installed" in variants.pop("torch_nchw")["missing"]
  for variant in variants.values():
    assert len(variant["ratios"]) == 2 and min(variant["seconds"]) > 0
    # Random labels of 1,000 classes: ln(1000) is 6.9.
    assert variant["facts"]["first_loss"] == pytest.approx(6.9, abs=0.5)

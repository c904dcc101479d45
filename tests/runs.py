"""Prepares and trains runs in this process, for tests."""

import io
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import rich.console

from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import step as step_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train as train_lib
from tests import processes


class Trained(NamedTuple):
  """What a run leaves.

  Attributes:
    state: the final one.
    lines: of metrics.jsonl.
    output: the text on its console.
    run: the prepared run.
  """

  state: step_lib.TrainState
  lines: list[dict]
  output: str
  run: run_lib.Run


def prepare(config, workdir, data_dir, *, group=None) -> run_lib.Run:
  return run_lib.prepare(
    config,
    group=group or group_lib.alone(),
    workdir=str(workdir),
    data_dir=str(data_dir),
    simulate_devices=None,
  )


def train(config, workdir, data_dir, **options) -> Trained:
  run = prepare(config, workdir, data_dir)
  console = rich.console.Console(record=True, width=120, file=io.StringIO())
  state = train_lib.train(run, console, **options)
  lines = processes.read_reports(pathlib.Path(workdir))
  return Trained(state, lines, console.export_text(), run)


def assert_same_norms(found, expected) -> None:
  """Compares states in float64 up to sums in another order, in all updates."""
  jax.tree.map(
    lambda a, b: np.testing.assert_array_less(
      np.linalg.norm(a - b), 1e-8 * np.linalg.norm(b) + 1e-14
    ),
    found,
    expected,
  )


def same_bits(a, b) -> bool:
  equal = jax.tree.map(
    lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b
  )
  return all(jax.tree.leaves(equal))

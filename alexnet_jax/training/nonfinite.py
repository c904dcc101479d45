"""Finds the first non-finite layer by replaying the step.

A step whose loss is not finite changes nothing (`step.update`), and its
batch is a function of its number. So it can be repeated with the same random
numbers on the same devices; all processes of a run do so together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import pipeline
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build
from alexnet_jax.training import report
from alexnet_jax.training import run as run_lib

# {name: f32[blocks, 2]}: number of non-finite values, and the largest finite
# absolute value; see `recording.summarize`.
Notes = Mapping[str, np.ndarray]


def explain(
  run: run_lib.Run,
  state: step_lib.TrainState,
  error: report.LossNotFinite,
  *,
  saved: int | None,
) -> FloatingPointError:
  """Replays a step and makes the error to raise; alike in all processes.

  If the replay fails, the error still has all that is known without it. After
  a validation, it says whether the state is finite.

  Args:
    state: as the step returned it.
    saved: the step of the newest checkpoint; None: there is none.
  """
  run.group.pause_watchdog()  # it compiles
  try:
    if error.in_validation:
      cause = find_cause_in_state(state)
    else:
      cause = _replay(run, state, error)
  except Exception as failure:
    summary = " ".join(str(failure).split())[:200]
    cause = f"the replay that would show where it began fails ({summary})"
  resumes = (
    "There is no checkpoint yet, so the same command starts over"
    if saved is None
    else f"The last checkpoint is of step {saved}, and the same command "
    "resumes from there"
  )
  return FloatingPointError(
    f"{error.name} is {error.loss}: {cause}. {resumes}, to fail "
    f"{'after' if error.in_validation else 'at'} step {error.step} again "
    "unless something is changed: lower config.optimizer.learning_rate, or set "
    "config.optimizer.warmup_epochs, with --allow_config_changes"
  )


def _replay(
  run: run_lib.Run, state: step_lib.TrainState, error: report.LossNotFinite
) -> str:
  program, state = run.program.select_run(error.index, state)
  _, key = program.make_keys(run.config.seed + (error.index or 0))
  batches = pipeline.train_batches(
    run.train_records,
    seed=build.find_order_seed(run.config),
    first_step=error.step - 1,
    num_steps=error.step,
    batch_size=program.batch_size,
    shardings=program.batch_shardings,
    threads=1,
    batches_ahead=0,
  )
  with contextlib.closing(batches):
    batch = next(iter(batches))
    result = program.replay(state, key, batch.images, batch.labels)
  totals, outputs, variables = jax.device_get(result)
  # A compiled step does not keep the order of a dictionary.
  order = ["images", *(layer.name for layer in program.network.layers)]
  return find_cause(
    {name: outputs[name] for name in order if name in outputs},
    {
      f"{layer}.{name}": notes
      for layer in order
      for name, notes in variables.get(layer, {}).items()
    },
    step=error.step,
    loss=float(totals[0]),
  )


def find_cause(
  outputs: Notes, variables: Notes, *, step: int, loss: float
) -> str:
  """Says where the first non-finite value is.

  Args:
    outputs: of the images and each layer, in the order of the network.
    variables: of each parameter and running statistic, before the step.
    step, loss: the step whose loss was not finite, and its loss when replayed.
  """
  bad = [name for name in variables if variables[name][:, 0].any()]
  if bad:
    layers = list(dict.fromkeys(name.split(".")[0] for name in bad))
    first = (
      f"; the backward pass reaches {layers[-1]} first"
      if len(layers) > 1
      else ""
    )
    return (
      f"the update of step {step - 1}, whose own loss was finite, left "
      f"non-finite values in {_list(bad)}{first}"
    )
  parameters = f"all parameters were finite, up to {_largest(variables)}"
  bad = next((name for name in outputs if outputs[name][:, 0].any()), None)
  if bad is None and np.isfinite(loss):
    return (
      f"replayed, the same step has the finite loss {loss:.6g}, so a hardware "
      f"fault is possible; {parameters}"
    )
  if bad is None:
    return (
      "the outputs of all layers are finite, but their loss is not; the "
      f"largest output is {_largest(outputs)}; {parameters}"
    )
  names = list(outputs)
  before = {name: outputs[name] for name in names[: names.index(bad)]}
  reached = f"; before it, values reach {_largest(before)}" if before else ""
  place = "the images" if bad == "images" else f"the output of {bad}"
  return f"the first non-finite values are in {place}{reached}; {parameters}"


def find_cause_in_state(state: step_lib.TrainState) -> str:
  """Says which arrays of a state have values that are not finite."""

  @jax.jit
  def is_finite(arrays):
    return [jnp.all(jnp.isfinite(array)) for array in arrays]

  named = [
    (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    for path, leaf in jax.tree.leaves_with_path(state)
    if leaf.ndim  # the best error so far is infinite before there is any
  ]
  finite = jax.device_get(is_finite([leaf for _, leaf in named]))
  bad = [
    name for (name, _), is_so in zip(named, finite, strict=True) if not is_so
  ]
  if bad:
    return f"the state has non-finite values in {_list(bad)}"
  return "the state is finite, so an output of the network overflows"


def _largest(notes: Notes) -> str:
  name = max(notes, key=lambda name: notes[name][:, 1].max())
  return f"{notes[name][:, 1].max():.3g} in {name}"


def _list(names: list[str]) -> str:
  if len(names) > 4:
    return f"{', '.join(names[:3])} and {len(names) - 3} more"
  return ", ".join(names)

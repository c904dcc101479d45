"""Why a loss is not finite: the step is taken again, and looked at by layer.

A step whose loss is not finite changes nothing (`step.keep_finite`), and its
batch is a function of its number. So what went wrong can be repeated, with the
same draws, on the same devices; all processes of a run do so together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import jax
import numpy as np

from alexnet_jax.data import pipeline
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build
from alexnet_jax.training import report
from alexnet_jax.training import run as run_lib

# {name: f32[blocks, 2]}: how many values are not finite, the largest that is.
Notes = Mapping[str, np.ndarray]


def explain(
  run: run_lib.Run,
  state: step_lib.TrainState,
  error: report.LossNotFinite,
  *,
  saved: int | None,
) -> FloatingPointError:
  """What to say of a step whose loss is not finite; in all processes alike.

  Looking must not hide what is known: where it fails, that is said too.

  Args:
    run: the run.
    state: as it was kept since that step, of all members.
    error: names the step.
    saved: the step of the newest checkpoint; None: there is none.
  """
  run.group.pause_watchdog()  # it compiles
  try:
    cause = _examine(run, state, error)
  except Exception as failure:
    summary = " ".join(str(failure).split())[:200]
    cause = f"where that began cannot be found out ({summary})"
  return FloatingPointError(
    f"{error.where} is {error.loss}: {cause}. {_go_on(error.step, saved)}"
  )


def _examine(
  run: run_lib.Run, state: step_lib.TrainState, error: report.LossNotFinite
) -> str:
  """Takes the step of an error again; where the first value is not finite."""
  member = error.member or 0
  program = run.program.members[member]
  if error.member is not None:
    state = ensemble_lib.take(state, program.abstract_state)
  _, key = program.make_keys(run.config.seed + member)
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
    found = program.examine(state, key, batch.images, batch.labels)
  totals, outputs, variables = jax.device_get(found)
  # The order of a dictionary does not survive a compiled step.
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
  """Where the first value is that is not finite.

  Args:
    outputs: of each layer, in the order of the network, after the images.
    variables: of each parameter and running statistic, before the step.
    step: whose loss was not finite.
    loss: of the step as it was taken again.
  """
  bad = [name for name in variables if variables[name][:, 0].any()]
  if bad:
    layers = list(dict.fromkeys(name.split(".")[0] for name in bad))
    first = (
      f", of whose layers the backward pass comes to {layers[-1]} first"
      if len(layers) > 1
      else ""
    )
    return (
      f"the update of step {step - 1}, whose own loss was finite, has left "
      f"values that are not in {_list(bad)}{first}"
    )
  sound = f"all parameters were finite, up to {_largest(variables)}"
  sick = next((name for name in outputs if outputs[name][:, 0].any()), None)
  if sick is None and np.isfinite(loss):
    return (
      f"taken again, the same step has the finite loss {loss:.6g}, so a fault "
      f"of the hardware is possible; {sound}"
    )
  if sick is None:
    return (
      "the outputs of all layers are finite, the loss of them is not; the "
      f"largest output is {_largest(outputs)}; {sound}"
    )
  before = list(outputs)[: list(outputs).index(sick)]
  where = "the images" if sick == "images" else f"the output of {sick}"
  reached = (
    f"; before it, values reach {_largest({n: outputs[n] for n in before})}"
    if before
    else ""
  )
  return (
    f"the first values that are not finite are in {where}{reached}; {sound}"
  )


def _largest(notes: Notes) -> str:
  name = max(notes, key=lambda name: notes[name][:, 1].max())
  return f"{notes[name][:, 1].max():.3g} in {name}"


def _list(names: list[str]) -> str:
  if len(names) > 4:
    return f"{', '.join(names[:3])} and {len(names) - 3} more"
  return ", ".join(names)


def _go_on(step: int, saved: int | None) -> str:
  kept = (
    "There is no checkpoint yet, so the command starts over"
    if saved is None
    else f"The last checkpoint is of step {saved}, and the command goes on "
    "from there"
  )
  return (
    f"{kept}, to the same end at step {step} unless something is changed: "
    "lower config.optimizer.learning_rate, or set "
    "config.optimizer.warmup_epochs, with --allow_config_changes"
  )

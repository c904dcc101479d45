"""A run taken over into an equivalent network; `convert.py` is the command."""

from __future__ import annotations

import os

import jax

from alexnet_jax.checkpoints import checkpoint, reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.convert import block_diagonal
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import trained_run

# What may differ between the two runs, beside where they are computed.
_CHANGES = ("network.wiring", "network.columns")


def convert(
  config, *, workdir: str, new_workdir: str, step: int | None = None
) -> list[str]:
  """Writes the new run; what was done, in words.

  Args:
    config: of the new run.
    workdir: of the run that there is, which may be training.
    new_workdir: of the new one.
    step: of the checkpoint; None: the newest.

  Raises:
    ValueError, TypeError, OSError: the two do not compute the same, there is a
      run in `new_workdir`, or it cannot be written; says what to change.
  """
  settings.check_single(config, command="convert")
  target, _ = settings.check(config)
  run = trained_run.read(
    workdir, fields=config, layout=catalog.ONE_DEVICE.name, step=step
  )
  _check_fields(config, run)
  block_diagonal.check(run.network, target)
  workdir_lib.check(new_workdir)
  unfinished = f"{new_workdir.rstrip(os.sep)}.unfinished"
  for path in (new_workdir, unfinished):
    if os.path.lexists(path):
      raise ValueError(
        f"{path!r} is there already, expected a new folder. Remove it, or set "
        "--new_workdir."
      )
  like = _find_like(config, run, run.network)
  state = reader.load(workdir, run.step, like)
  state = block_diagonal.convert(state, run.network, target)
  like = _find_like(config, run, target)
  state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, like))
  # A run without its checkpoint would start from the beginning.
  claim = workdir_lib.acquire(unfinished, config.to_dict(), run.found)
  checkpoints = checkpoint.Checkpoints(unfinished, keep=config.max_to_keep)
  # Its error decides how long it is kept; a validation may be owed.
  checkpoints.save(run.step, state, reader.read_facts(workdir, run.step))
  checkpoints.close()
  os.rename(unfinished, new_workdir)
  for lock in claim.locks:
    lock.release()
  return [
    *(
      f"{name}: the kernel was {_times(there)}, and is {_times(here)}"
      for name, (there, here) in block_diagonal.find_changes(
        run.network, target
      ).items()
    ),
    f"{new_workdir} goes on after step {run.step} with this config: set "
    f"--workdir={new_workdir}",
  ]


def _check_fields(config, run: trained_run.TrainedRun) -> None:
  """Refuses a config that differs in what is not taken over.

  Raises:
    ValueError: names the fields.
  """
  there = workdir_lib.read(run.workdir)
  here = workdir_lib.to_fields(config.to_dict(), run.found)
  free = (*workdir_lib.FREE, *_CHANGES)
  differences = [
    f"{name}: {there.get(name)} there, {value} here"
    for name, value in here.items()
    if there.get(name) != value
    and not any(name == each or name.startswith(f"{each}.") for each in free)
  ]
  if differences:
    raise ValueError(
      f"the run in {run.workdir!r} has another config "
      f"({'; '.join(differences)}), expected the same but for "
      f"{' and '.join(_CHANGES)}. Set these fields back."
    )


def _find_like(
  config, run: trained_run.TrainedRun, network: wiring.Network
) -> step_lib.TrainState:
  """Shapes of a state, on one device."""
  return run_lib.make_program(
    config,
    network,
    catalog.ONE_DEVICE,
    num_images=run.found["training_images"],
  ).abstract_state


def _times(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))

"""Copies a run into a new workdir, with an equivalent network."""

from __future__ import annotations

import shlex

import jax

from alexnet_jax.checkpoints import checkpoint, reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.network import block_diagonal, wiring
from alexnet_jax.partition import catalog
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import fields as fields_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import run_data, trained_run

# Fields that may differ, beside those that any run may change.
_CHANGES = ("network.wiring", "network.columns")
# Of these, the networks themselves are compared.
_COMPARED = ("network.order", "network.layers", "network.image_channels")


def convert(
  config, *, workdir: str, new_workdir: str, step: int | None = None
) -> list[str]:
  """Writes the new run, and returns lines that say what was converted.

  Args:
    config: of the new run.
    workdir: of the existing run, which may be training.
    new_workdir: must not exist.
    step: of the checkpoint; None: the newest.

  Raises:
    ValueError, TypeError, OSError: the networks do not compute the same,
      `new_workdir` exists, or cannot be written; says what to change.
  """
  settings.check_single(config, command="convert")
  target, _ = settings.check(config)
  run = trained_run.read(
    workdir, fields=config, layout=catalog.ONE_DEVICE.name, step=step
  )
  _check_fields(config, run)
  block_diagonal.check(run.network, target)
  workdir_lib.check_new(new_workdir)
  data = run_data.read(workdir, run.found) if run_data.exists(workdir) else None
  abstract = _make_abstract_state(config, run, run.network)
  state = reader.load(workdir, run.step, abstract)
  state = block_diagonal.convert(state, run.network, target)
  abstract = _make_abstract_state(config, run, target)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  state = jax.device_put(state, shardings)
  with workdir_lib.create(new_workdir, config.to_dict(), run.found) as folder:
    if data is not None:
      run_data.write(folder, data, flag="new_workdir")
    checkpoints = checkpoint.Checkpoints(folder, keep=config.max_to_keep)
    # The facts hold the validation error, which decides how long the checkpoint
    # is kept, and whether a validation is still due.
    checkpoints.save(run.step, state, reader.read_facts(workdir, run.step))
    checkpoints.close()
  old, new = (
    {
      name: "x".join(map(str, size.kernel))
      for name, size in network.sizes().items()
    }
    for network in (run.network, target)
  )
  return [
    *(
      f"{name}: the kernel was {shape}, and is now {new[name]}"
      for name, shape in old.items()
      if shape != new[name]
    ),
    f"to resume after step {run.step} with this config, set "
    + shlex.quote(f"--workdir={new_workdir}"),
  ]


def _check_fields(config, run: trained_run.TrainedRun) -> None:
  """Refuses a config that differs in fields that cannot be converted."""
  old = workdir_lib.read_config(run.workdir)
  new = workdir_lib.flatten_config(config.to_dict(), run.found)
  free = (*fields_lib.find_changeable(), *_CHANGES, *_COMPARED)
  differences = workdir_lib.find_differences(old, new, may_change=free)
  if differences:
    raise ValueError(
      f"the run in {run.workdir!r} has another config "
      f"({'; '.join(differences)}), expected the same except for "
      f"{' and '.join(_CHANGES)}. Set these fields back."
    )


def _make_abstract_state(
  config, run: trained_run.TrainedRun, network: wiring.Network
) -> step_lib.TrainState:
  """Shapes and shardings of a state on one device."""
  images = run.found["training_images"]
  return run_lib.make_program(
    config, network, catalog.ONE_DEVICE, num_images=images
  ).abstract_state

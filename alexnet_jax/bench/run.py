"""A real run, watched: what of its time is spent outside the steps.

The run is that of `train.train`, with its data, reports and checkpoints, in a
directory for the time being. Validations are left out, and it ends with its
last step, before the checkpoint that would follow.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile

import ml_collections
import rich.console

from alexnet_jax.bench import gaps as gaps_lib
from alexnet_jax.bench import watch as watch_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train

# Steps that are left out: of the first two, memory and threads are new.
WARM = 2
# So few, and there is no room for reports and a checkpoint.
FEWEST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """What was measured.

  Attributes:
    gaps: between steps.
    batch_size: images in a step.
    report_every: steps between two reports, in the run that was measured.
    checkpoint_every: steps between two checkpoints, there.
    own_report_every: steps between two reports, as the config has it.
    own_checkpoint_every: steps between two checkpoints, as the config has it.
    folder: where the directory of the run was.
    platform: of the devices.
  """

  gaps: gaps_lib.Gaps
  batch_size: int
  report_every: int
  checkpoint_every: int
  own_report_every: int
  own_checkpoint_every: int
  folder: str
  platform: str

  def own_share(self) -> float:
    """The share outside the steps at the pace that the config has, 0 to 1."""
    return self.gaps.share_at(
      report_every=self.own_report_every,
      checkpoint_every=self.own_checkpoint_every,
    )


def measure(
  config: ml_collections.ConfigDict, *, steps: int, **options
) -> Speed:
  """Trains for so many steps and adds up what was not spent in them.

  Args:
    config: of a single run; reports and checkpoints come more often where they
      would not come within these steps.
    steps: of the run, `FEWEST` or more.
    **options: others of `run.prepare`.

  Raises:
    ValueError, TypeError, OSError: see `run.prepare`.
    audit.PlanMismatch, FloatingPointError, source.RecordError: see `train`.
  """
  fitted = fit(config, steps)
  watch = watch_lib.Watch()
  with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, "w") as nowhere,
  ):
    run = run_lib.prepare(
      fitted,
      group=group_lib.alone(),
      workdir=os.path.join(folder, "workdir"),
      **options,
    )
    with watch.running():
      train.train(
        # The schedule stays that of the whole run.
        dataclasses.replace(run, num_steps=steps),
        rich.console.Console(file=nowhere, width=120),
        make_loop=functools.partial(watch_lib.WatchedLoop, watch),
      )
  return Speed(
    gaps=gaps_lib.find_gaps(watch.record(), warm=WARM),
    batch_size=config.batch_size,
    report_every=fitted.report_every_steps,
    checkpoint_every=fitted.checkpoint_every_steps,
    own_report_every=config.report_every_steps,
    own_checkpoint_every=config.checkpoint_every_steps,
    folder=tempfile.gettempdir(),
    platform=run.program.mesh.devices.flat[0].platform,
  )


def fit(
  config: ml_collections.ConfigDict, steps: int
) -> ml_collections.ConfigDict:
  """The config with reports and a checkpoint within so many steps.

  Returns:
    A copy; without validations.
  """
  fitted = config.copy_and_resolve_references()
  fitted.report_every_steps = min(config.report_every_steps, steps // 4)
  fitted.checkpoint_every_steps = min(
    config.checkpoint_every_steps, steps // 2 + 1
  )
  fitted.keep_every_steps = None
  fitted.validate_every_steps = steps
  return fitted

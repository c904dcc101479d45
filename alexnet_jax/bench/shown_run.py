"""How a watched run and its start are shown."""

from __future__ import annotations

from alexnet_jax.bench import gaps as gaps_lib
from alexnet_jax.bench import run as run_lib
from alexnet_jax.bench import shown, startup
from alexnet_jax.program import summary

_SAID = {
  gaps_lib.INPUT: "waits for input",
  gaps_lib.REPORT: "reports",
  gaps_lib.CHECKPOINT: "saves a checkpoint",
  gaps_lib.ELSE: "does anything else",
}


def show_run(found: run_lib.Speed) -> shown.Shown:
  """A row for each activity of the host."""
  gaps = found.gaps
  table = summary.make_table(
    f"{gaps.steps} steps of {found.batch_size} images: no step under way",
    *("while the host", "> ms", "> of the time", "> times"),
  )
  times = {
    gaps_lib.INPUT: gaps.steps,
    gaps_lib.REPORT: gaps.reports,
    gaps_lib.CHECKPOINT: gaps.checkpoints,
    gaps_lib.ELSE: gaps.steps,
  }
  for activity, seconds in gaps.spent.items():
    table.add_row(
      *(_SAID[activity], f"{1e3 * seconds:,.1f}"),
      *(f"{seconds / gaps.wall:.2%}", f"{times[activity]:,}"),
    )
  table.add_section()
  spent = sum(gaps.spent.values())
  table.add_row("all", f"{1e3 * spent:,.1f}", f"{gaps.share:.2%}", "")
  median, lowest, highest = shown.milliseconds(gaps.step_seconds)
  rate = found.batch_size * gaps.steps / gaps.wall
  lines = [
    f"{gaps.wall:.2f} s of a real run, {rate:,.1f} images/s; a step takes "
    f"{median} ms ({lowest} to {highest}) from its start or the end of the one "
    "before",
    f"with a report every {found.report_every} steps and a checkpoint every "
    f"{found.checkpoint_every}, {gaps.share:.2%} of the time is spent outside "
    f"the steps; with one every {found.own_report_every:,} and "
    f"{found.own_checkpoint_every:,}, as the config has it, "
    f"{found.own_share():.2%}",
    f"left out: the first {run_lib.WARM} steps, compiling, validations, what "
    f"follows the last step; checkpoints were in {found.folder} (TMPDIR)",
    *(
      [
        "what the host does beside a step, as reading the next images or "
        "writing a checkpoint, makes the step longer here: both are on the "
        "same cores. That is no gap; `--what=step` has the step alone"
      ]
      if found.platform == "cpu"
      else []
    ),
  ]
  data = {
    "batch_size": found.batch_size,
    "steps": gaps.steps,
    "wall_seconds": gaps.wall,
    "images_per_second": rate,
    "gap_seconds": gaps.spent,
    "gap_share": gaps.share,
    "gap_share_at_own_cadence": found.own_share(),
    "reports": gaps.reports,
    "checkpoints": gaps.checkpoints,
    "report_every_steps": found.report_every,
    "checkpoint_every_steps": found.checkpoint_every,
    "step_seconds": shown.of_rounds(gaps.step_seconds),
    "platform": found.platform,
  }
  return shown.Shown(data, [table], lines)


def show_startup(found: startup.Speed) -> shown.Shown:
  """A row for each phase."""
  table = summary.make_table(
    "start to first step, in s",
    *("phase", *(f"> {start}" for start in startup.STARTS)),
  )
  for phase in startup.PHASES:
    table.add_row(
      phase, *(f"{found.median(start, phase):.2f}" for start in startup.STARTS)
    )
  table.add_section()
  totals = {start: found.totals(start) for start in startup.STARTS}
  medians = {start: shown.spread(all_)[0] for start, all_ in totals.items()}
  table.add_row("all", *(f"{medians[start]:.2f}" for start in startup.STARTS))
  rounds = len(totals["cold"])
  lines = [
    f"medians of {rounds} {'rounds' if rounds > 1 else 'round'} of two "
    "processes, from the command to the end of the first step: cold with an "
    "empty compilation cache, warm with what the cold one has left in it",
    *(
      f"{start}: {min(totals[start]):.2f} to {max(totals[start]):.2f} s"
      for start in startup.STARTS
    ),
    *(
      ["the warm start has NOT found its step in the cache"]
      if not all(found.from_cache["warm"])
      else []
    ),
  ]
  data = {
    start: {
      "seconds": {
        phase: shown.of_rounds(found.seconds[start][phase])
        for phase in startup.PHASES
      },
      "total_seconds": shown.of_rounds(totals[start]),
      "step_from_cache": found.from_cache[start],
    }
    for start in startup.STARTS
  }
  return shown.Shown(data, [table], lines)

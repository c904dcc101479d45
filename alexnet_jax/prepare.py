"""Prepares imagenet256: python -m alexnet_jax.prepare --manual_dir=FOLDER

From the official tar files of ILSVRC 2012. Interrupted, the same command goes
on; a set that stands under its name is complete. TensorFlow is not needed.
"""

from __future__ import annotations

import sys
import time

import rich.console
import rich.progress
import rich.table
import tensorflow_datasets as tfds
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import host_batches, preparation, sets, shards

_DATASET = flags.DEFINE_string(
  "dataset", "imagenet256", "imagenet256, imagenet256/jpeg or imagenet256/raw."
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir",
  None,
  "The folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar. "
  "Default: downloads/manual in --data_dir.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_JOBS = flags.DEFINE_integer(
  "jobs", None, "Processes. Default: as many as cores.", lower_bound=1
)
_UNREADABLE = flags.DEFINE_enum(
  "unreadable",
  "stop",
  ["stop", "leave_out"],
  "What to do where a file of the tars cannot be decoded.",
)
_SUBSET = flags.DEFINE_bool(
  "subset", False, "Accept tars in the official layout with fewer files."
)
_SHARD_IMAGES = flags.DEFINE_integer(
  "shard_images",
  preparation.SHARD_IMAGES,
  "Images in a shard, at most; what an interruption can lose of each process.",
  lower_bound=1,
)
_CHECK_ONLY = flags.DEFINE_bool(
  "check_only", False, "Stop after the checks; nothing is written."
)
# Between two lines of progress, where the output is no terminal.
_LINE_SECONDS = 30.0


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  try:
    with command.in_one_line(ValueError, OSError):
      _prepare(command.make_console())
  except KeyboardInterrupt:
    sys.exit("interrupted; the same command goes on after the last shards.")


def _prepare(console: rich.console.Console) -> None:
  jobs = _JOBS.value or host_batches.find_cores()
  builder = sets.find_to_prepare(_DATASET.value, data_dir=_DATA_DIR.value)
  if builder.info.splits:
    if not _CHECK_ONLY.value:
      preparation.clear_leftovers(builder)
    console.print(
      f"{builder.info.full_name} is complete already, in {builder.data_dir}; "
      "delete that folder to prepare it anew",
      soft_wrap=True,
      highlight=False,
    )
    return
  plan = preparation.plan(
    builder,
    manual_dir=_MANUAL_DIR.value or builder.default_manual_dir,
    subset=_SUBSET.value,
    leave_out=_UNREADABLE.value == "leave_out",
    shard_images=_SHARD_IMAGES.value,
    say=console.print,
  )
  _introduce(plan, jobs, console)
  if not _CHECK_ONLY.value:
    with _Progress(plan, console) as progress:
      notes = preparation.carry_out(plan, jobs=jobs, report=progress.advance)
    _conclude(builder, notes, console)


def _introduce(
  plan: preparation.Plan, jobs: int, console: rich.console.Console
) -> None:
  """Shows what is about to be written."""
  table = rich.table.Table(
    title=f"to write: {plan.builder.info.full_name}",
    title_justify="left",
    box=None,
  )
  table.add_column("split")
  for name in ("images", "classes", "shards", "done already"):
    table.add_column(name, justify="right")
  waiting = {shard.path for shard in plan.waiting}
  for split, listed in plan.shards.items():
    members = plan.files[split]
    table.add_row(
      split,
      f"{len(members):,}",
      f"{len({member.label for member in members}):,}",
      f"{len(listed):,}",
      f"{sum(shard.path not in waiting for shard in listed):,}",
    )
  console.print(table)
  images = sum(len(shard.members) for shard in plan.waiting)
  seconds = images * plan.image_seconds / jobs
  for line in (
    f"into {plan.builder.data_dir}",
    f"{plan.needed_bytes / 1e6:,.0f} MB of disk, {plan.free_bytes / 1e6:,.0f} "
    f"MB free; about {_to_time(seconds)} with {jobs} processes, if the disk "
    "keeps up",
  ):
    console.print(line, soft_wrap=True, highlight=False)


def _conclude(
  builder: tfds.core.DatasetBuilder,
  notes: list[shards.Notes],
  console: rich.console.Console,
) -> None:
  """Says what was written, and what was done with odd files."""
  for kind, (count, names) in preparation.count_odd(notes).items():
    shown = ", ".join(names[:3]) + (", ..." if count > 3 else "")
    files = "file" if count == 1 else "files"
    console.print(
      f"{count:,} {files} {shards.KINDS[kind]}: {shown}",
      soft_wrap=True,
      highlight=False,
    )
  splits = ", ".join(
    f"{split.num_examples:,} in {name}"
    for name, split in builder.info.splits.items()
  )
  console.print(
    f"{builder.info.full_name} is complete in {builder.data_dir}: {splits}; "
    f"{sum(note.bytes for note in notes) / 1e6:,.0f} MB",
    soft_wrap=True,
    highlight=False,
  )


class _Progress:
  """A bar with rate and time left on a terminal, else a line now and then."""

  def __init__(self, plan: preparation.Plan, console: rich.console.Console):
    self._console = console
    self._total = sum(len(shard.members) for shard in plan.waiting)
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn("images"),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("{task.fields[said]}"),
      console=console,
      disable=not console.is_terminal,
      transient=True,
    )
    self._task = self._bar.add_task("images", total=self._total, said="")
    self._since = self._last = time.monotonic()

  def __enter__(self) -> _Progress:
    self._bar.start()
    return self

  def __exit__(self, *unused) -> None:
    self._bar.stop()

  def advance(self, done: int) -> None:
    """Shows that so many images of the total are done."""
    now = time.monotonic()
    rate = done / max(now - self._since, 1e-9)
    left = _to_time((self._total - done) / rate) if done else "?"
    said = f"{rate:,.0f} images/s, {left} left"
    self._bar.update(self._task, completed=done, said=said)
    if not self._console.is_terminal and now - self._last > _LINE_SECONDS:
      self._last = now
      self._console.print(
        f"{done:,} of {self._total:,} images, {said}", highlight=False
      )


def _to_time(seconds: float) -> str:
  minutes = round(seconds / 60)
  if minutes < 1:
    return f"{max(1, round(seconds))} s"
  return (
    f"{minutes // 60} h {minutes % 60:02} min"
    if minutes > 59
    else (f"{minutes} min")
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

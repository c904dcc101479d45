"""Prepares the dataset imagenet256.

    python -m alexnet_jax.prepare --manual_dir=FOLDER

From the official tar files of ILSVRC 2012, without TensorFlow. After an
interruption, the same command resumes; a set under its final name is complete.
"""

from __future__ import annotations

import functools
import sys
import time

import rich.console
import rich.progress
import tensorflow_datasets as tfds
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import host_batches, preparation, sets, shards
from alexnet_jax.program import summary

_DATASET = flags.DEFINE_string(
  "dataset", "imagenet256", "imagenet256, imagenet256/jpeg or imagenet256/raw."
)
_MANUAL_DIR = command.define_path(
  "manual_dir",
  "Folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar. Default: "
  "downloads/manual in --data_dir.",
  remedy=command.READ_HERE,
)
_DATA_DIR = command.define_data_dir(writes=True)
_JOBS = flags.DEFINE_integer(
  "jobs", None, "Processes. Default: one per core.", lower_bound=1
)
_UNREADABLE = flags.DEFINE_enum(
  "unreadable",
  "stop",
  ["stop", "leave_out"],
  "What to do if a file of the tars cannot be decoded.",
)
_SUBSET = flags.DEFINE_bool(
  "subset", False, "Accept tars in the official layout with fewer files."
)
_SHARD_IMAGES = flags.DEFINE_integer(
  "shard_images",
  preparation.SHARD_IMAGES,
  "Images in a shard, at most; an interruption loses one shard per process.",
  lower_bound=1,
)
_CHECK_ONLY = flags.DEFINE_bool(
  "check_only", False, "Stop after the checks, without writing anything."
)
# Between two lines of progress if the output is not a terminal.
_LINE_SECONDS = 30.0


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  try:
    with command.exit_on_error(ValueError, OSError):
      _prepare(command.make_console())
  except KeyboardInterrupt:
    sys.exit("interrupted; the same command resumes and keeps finished shards.")


def _prepare(console: rich.console.Console) -> None:
  jobs = _JOBS.value or host_batches.count_cores()
  builder = sets.find_to_prepare(_DATASET.value, data_dir=_DATA_DIR.value)
  if builder.info.splits:
    if not _CHECK_ONLY.value:
      preparation.remove_leftovers(builder)
    command.print_line(
      console,
      f"{builder.info.full_name} is complete already, in {builder.data_dir}; "
      "delete that folder to prepare it again",
    )
    return
  plan = preparation.make_plan(
    builder,
    manual_dir=_MANUAL_DIR.value or builder.default_manual_dir,
    subset=_SUBSET.value,
    leave_out=_UNREADABLE.value == "leave_out",
    shard_images=_SHARD_IMAGES.value,
    log=functools.partial(command.print_line, console),
  )
  _print_plan(plan, jobs, console)
  if not _CHECK_ONLY.value:
    with _Progress(plan, console) as progress:
      notes = preparation.execute(plan, jobs=jobs, report=progress.advance)
    _print_result(builder, notes, console)


def _print_plan(
  plan: preparation.Plan, jobs: int, console: rich.console.Console
) -> None:
  table = summary.make_table(
    f"to write: {plan.builder.info.full_name}",
    *("split", "> images", "> classes", "> shards", "> done already"),
  )
  remaining = {shard.path for shard in plan.remaining}
  for split, split_shards in plan.shards.items():
    members = plan.files[split]
    table.add_row(
      split,
      f"{len(members):,}",
      f"{len({member.label for member in members}):,}",
      f"{len(split_shards):,}",
      f"{sum(shard.path not in remaining for shard in split_shards):,}",
    )
  console.print(table)
  images = sum(len(shard.members) for shard in plan.remaining)
  jobs = max(1, min(jobs, len(plan.remaining)))
  seconds = images * plan.image_seconds / jobs
  for line in (
    f"into {plan.builder.data_dir}",
    f"needs {plan.needed_bytes / 1e6:,.0f} MB of disk, "
    f"{plan.free_bytes / 1e6:,.0f} MB are free; about {_to_time(seconds)} with "
    f"{jobs} processes, if the disk is fast enough",
  ):
    command.print_line(console, line)


def _print_result(
  builder: tfds.core.DatasetBuilder,
  notes: list[shards.Notes],
  console: rich.console.Console,
) -> None:
  """Prints what was written, and what was done with odd files."""
  for kind, (count, names) in preparation.count_odd(notes).items():
    shown = ", ".join(names[:3]) + (", ..." if count > 3 else "")
    files = "file" if count == 1 else "files"
    command.print_line(
      console, f"{count:,} {files} {shards.ODDITIES[kind]}: {shown}"
    )
  splits = ", ".join(
    f"{split.num_examples:,} in {name}"
    for name, split in builder.info.splits.items()
  )
  command.print_line(
    console,
    f"{builder.info.full_name} is complete in {builder.data_dir}: {splits}; "
    f"{sum(note.bytes for note in notes) / 1e6:,.0f} MB",
  )


class _Progress:
  """A bar with rate and time left on a terminal; else occasional lines."""

  def __init__(self, plan: preparation.Plan, console: rich.console.Console):
    self._console = console
    self._total = sum(len(shard.members) for shard in plan.remaining)
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn("images"),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("{task.fields[text]}", markup=False),
      console=console,
      disable=not console.is_terminal,
      transient=True,
    )
    self._task = self._bar.add_task("images", total=self._total, text="")
    self._since = self._last = time.monotonic()

  def __enter__(self) -> _Progress:
    self._bar.start()
    return self

  def __exit__(self, *unused) -> None:
    self._bar.stop()

  def advance(self, done: int) -> None:
    """Shows that `done` of all images are done."""
    now = time.monotonic()
    rate = done / max(now - self._since, 1e-9)
    left = _to_time((self._total - done) / rate) if done else "?"
    text = f"{rate:,.0f} images/s, {left} left"
    self._bar.update(self._task, completed=done, text=text)
    if not self._console.is_terminal and now - self._last > _LINE_SECONDS:
      self._last = now
      self._console.print(
        f"{done:,} of {self._total:,} images, {text}", highlight=False
      )


def _to_time(seconds: float) -> str:
  minutes = round(seconds / 60)
  if minutes < 1:
    return f"{max(1, round(seconds))} s"
  if minutes < 60:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60:02} min"


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

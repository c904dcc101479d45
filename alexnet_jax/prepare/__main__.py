"""Prepares a dataset: imagenet256, or one of your own pictures.

    python -m alexnet_jax.prepare --from=FOLDER

FOLDER holds ILSVRC 2012 (the official tars, folders, Kaggle's archive, parquet
files of a hub), or pictures in a folder for each class. TensorFlow is not used.
After an interruption, the same command resumes; a set under its final name is
complete.
"""

from __future__ import annotations

import functools
import math
import os
import pprint
import shlex
import sys
from collections.abc import Sequence

import rich.console
import tensorflow_datasets as tfds
from absl import app, flags

from alexnet_jax.cli import command, config_file, flag_parsing
from alexnet_jax.cli import progress as progress_lib
from alexnet_jax.data import (
  cores,
  ilsvrc,
  origin,
  own_set,
  preparation,
  recognition,
  sets,
  shards,
)

_FROM = command.define_path(
  "from",
  "Folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar; or with "
  "train/CLASS and val/CLASS; or with folders CLASS (see --validation); or "
  "Kaggle's archive; or train-*.parquet and validation-*.parquet. Default: "
  "downloads/manual in --data_dir.",
  remedy=command.READ_HERE,
)
_NAME = flags.DEFINE_string(
  "name",
  None,
  "Name of the set. Default: imagenet256 for the 1,000 classes of ImageNet, "
  "else that of the folder.",
)
_DATA_DIR = command.define_data_dir(writes=True)
_ENCODING = flags.DEFINE_enum(
  "encoding",
  "jpeg",
  ["jpeg", "raw"],
  "jpeg: of quality 95; raw: pixels, which take five times the space.",
)
_SIZE = flags.DEFINE_integer(
  "size",
  shards.SIDE,
  "Side of the stored squares, pixels.",
  lower_bound=1,
  upper_bound=4096,
)
_VALIDATION = flags.DEFINE_float(
  "validation",
  None,
  "Share of the pictures for validation, between 0 and 1, where FOLDER has no "
  "validation pictures. The name of a picture decides.",
)
_JOBS = flags.DEFINE_integer(
  "jobs", None, "Processes. Default: one per core.", lower_bound=1
)
_UNREADABLE = flags.DEFINE_enum(
  "unreadable",
  "stop",
  ["stop", "leave_out"],
  "What to do if a file cannot be decoded.",
)
_SUBSET = flags.DEFINE_bool(
  "subset", False, "Accept ILSVRC 2012 with fewer classes or pictures."
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
_WRITE = command.define_path(
  "write",
  "Write a config that trains two columns on the set to this file, .py.",
  remedy=command.WRITE_HERE,
)
# Of a square, to crop the least image of the network from, 67 pixels; smaller
# squares are enlarged when they are read.
_LEAST_SQUARE = 77
# What a written config starts from.
_BASE = "configs/default.py:imagenet"
_FILE = '''"""AlexNet in two columns on {name}: {classes}.

    python -m alexnet_jax.main --config={path}{place}

Written by python -m alexnet_jax.prepare.{note}
"""

from configs import default

# Where the config differs from configs/default.py.
CHANGES = {changes}


def get_config():
  config = default.get_config("imagenet")
  config.layout.name = "two_column"
  config.update(CHANGES)
  return config
'''
_NOTE = """ The initial weights of 2012 are for a
million pictures and pixels of 0..255; here they are He's, for inputs of about
unit scale. Time and result: not measured."""


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  try:
    with command.exit_on_error(ValueError, OSError, ImportError):
      _prepare(command.make_console())
  except KeyboardInterrupt:
    sys.exit("interrupted; the same command resumes and keeps finished shards.")


def _prepare(console: rich.console.Console) -> None:
  jobs = _JOBS.value or cores.count_cores()
  share = _VALIDATION.value
  if share is not None and not 0 < share < 1:
    raise ValueError(
      f"--validation is {share:g}, expected a share between 0 and 1. Set "
      "--validation=0.1."
    )
  if _WRITE.value:
    command.check_path(_WRITE.value, flag="write", endings=(".py",))
  folder = _FROM.value or sets.default_manual_dir(_DATA_DIR.value)
  found = recognition.find_origin(
    folder, subset=_SUBSET.value, validation=share
  )
  builder = _make_builder(found, folder)
  left_out = os.path.join(builder.data_dir, preparation.LEFT_OUT)
  if builder.info.splits:
    sets.check_prepared(builder)
    if not _CHECK_ONLY.value:
      preparation.remove_leftovers(builder)
    command.print_line(
      console,
      f"{builder.info.full_name} is complete already, in {builder.data_dir}; "
      "delete that folder to prepare it again",
    )
    _print_config(builder, console)
    return
  command.print_line(console, f"found {found.describe()}")
  plan = preparation.make_plan(
    builder,
    found,
    subset=_SUBSET.value,
    leave_out=_UNREADABLE.value == "leave_out",
    shard_images=_SHARD_IMAGES.value,
    log=functools.partial(command.print_line, console),
  )
  _print_plan(plan, jobs, console)
  if not _CHECK_ONLY.value:
    total = sum(len(shard.members) for shard in plan.remaining)
    with progress_lib.Images(console) as progress:
      notes = preparation.execute(
        plan,
        jobs=jobs,
        report=functools.partial(progress.advance, total=total),
      )
    _print_result(builder, notes, console)
    _print_config(builder, console)
    if os.path.exists(left_out):
      command.print_line(
        console, f"the files that were left out are listed in {left_out}"
      )


def _make_builder(
  found: origin.Origin, folder: str
) -> tfds.core.DatasetBuilder:
  """Makes the builder of the set, which the classes and the flags name."""
  is_imagenet = ilsvrc.are_classes(found.class_names, subset=_SUBSET.value)
  name = _NAME.value
  if name is None:
    name = ilsvrc.SET if is_imagenet else own_set.make_name(folder)
  elif name == ilsvrc.SET and not is_imagenet:
    raise ValueError(
      f"--name is {name}, but the {len(found.class_names):,} classes in "
      f"{folder} are not the 1,000 of ImageNet, as {ilsvrc.class_names()[0]}. "
      "Set --subset if they are some of them, or another --name."
    )
  return sets.make_to_prepare(
    name,
    data_dir=_DATA_DIR.value,
    encoding=_ENCODING.value,
    side=_SIZE.value,
    class_names=found.class_names,
  )


def _make_changes(
  builder: tfds.core.DatasetBuilder, stds: Sequence[float]
) -> dict:
  """Makes the fields of a config for a set.

  Args:
    builder: of the set, which is complete.
    stds: of the training pixels along the three color directions, gray levels.
  """
  format = shards.find_format(builder.info.features)
  is_imagenet = builder.name == ilsvrc.SET
  side = max(format.side, _LEAST_SQUARE)
  changes: dict[str, dict] = {
    "data": {
      "name": f"{builder.name}/{format.encoding}"
      if is_imagenet
      else builder.name,
      "stored_size": side,
    },
    "network": {
      "num_classes": format.num_classes,
      "image_size": side * 7 // 8,  # as in the paper: 224 of 256
    },
    "augment": {"statistics": "dataset"},
  }
  if not is_imagenet:
    changes["network"]["init"] = "he"
    scale = math.sqrt(sum(std**2 for std in stds) / 3)
    changes["augment"]["scale"] = max(round(scale, 1), 1.0)
  return changes


def _print_config(
  builder: tfds.core.DatasetBuilder, console: rich.console.Console
) -> None:
  """Prints the fields of a config for a set, and writes one if asked for."""
  found = sets.find_statistics(builder)
  changes = _make_changes(builder, found.stds)
  mean = ", ".join(f"{one:.1f}" for one in found.mean)
  command.print_line(console, f"a config for it (mean R, G, B: {mean}):")
  for group, fields in changes.items():
    for name, value in fields.items():
      command.print_line(console, f"  config.{group}.{name} = {value!r}")
  if _WRITE.value:
    _write_config(_WRITE.value, builder, changes)
    command.print_line(console, f"wrote {_WRITE.value}")


def _write_config(
  path: str, builder: tfds.core.DatasetBuilder, changes: dict
) -> None:
  expected = flag_parsing.load_config(_BASE, flag="write")
  expected.layout.name = "two_column"
  expected.update(changes)
  place = ""
  if _DATA_DIR.value:
    place = " " + shlex.quote(f"--data_dir={_DATA_DIR.value}")
  text = _FILE.format(
    name=builder.name,
    classes=f"{changes['network']['num_classes']:,} classes",
    path=shlex.quote(path),
    place=place,
    note=_NOTE if builder.name != ilsvrc.SET else "",
    changes=pprint.pformat(changes, width=78),
  )
  if not config_file.write(path, text, expected):
    raise ValueError(f"{path!r} would give another config. Leave --write out.")


def _print_plan(
  plan: preparation.Plan, jobs: int, console: rich.console.Console
) -> None:
  remaining = {shard.path for shard in plan.remaining}
  for split, split_shards in plan.shards.items():
    members = plan.listing.files[split]
    classes = len({member.label for member in members})
    done = sum(shard.path not in remaining for shard in split_shards)
    command.print_line(
      console,
      f"{split}: {len(members):,} images of {classes:,} classes, in "
      f"{len(split_shards):,} shards, of which {done:,} are done already",
    )
  images = sum(len(shard.members) for shard in plan.remaining)
  jobs = max(1, min(jobs, len(plan.remaining)))
  seconds = images * plan.image_seconds / jobs
  if plan.unpacked_bytes:
    command.print_line(
      console,
      f"first copies {plan.unpacked_bytes / 1e6:,.0f} MB of pictures, to read "
      "them in any order, and deletes the copies at the end",
    )
  for line in (
    f"into {plan.builder.data_dir} as {plan.builder.info.full_name}",
    f"needs {plan.needed_bytes / 1e6:,.0f} MB of disk, "
    f"{plan.free_bytes / 1e6:,.0f} MB are free; about "
    f"{progress_lib.to_time(seconds)} with {jobs} processes, if the disk is "
    "fast enough",
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


if __name__ == "__main__":
  app.run(
    main, flags_parser=functools.partial(command.parse_flags, uses_jax=False)
  )

"""The speed of prepare beside decoding, scaling and encoding alone.

    python -m benchmarks.preparation

What share of the time of `prepare --from=FOLDER` is spent on what no program
can leave out? Pictures of 500 x 375 pixels, cut from the photographs that ship
inside scikit-image and scikit-learn, are written into folders of classes, as
JPEGs of quality 95. Then two programs take turns:

- alone: Pillow decodes the files from memory, scales the shorter side to 256
  pixels, crops, and encodes: the same squares as `prepare`, and nothing else;
- shards: `shards.write` makes the same pictures into a shard, as `prepare` does
  in each of its processes: files read, records, pixel sums, notes, on disk.

And for each of --jobs once the whole command, with its start, checks, processes
and end, between two turns of `alone`. Time of the CPU is that of all processes
together, and hardly depends on what else the machine does; time on the clock
does. Of several processes, the clock's is divided by that of `alone` in one
process, by their number: a machine without so many free cores looks slow.
"""

from __future__ import annotations

import io
import itertools
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import rich.table
from absl import app, flags
from PIL import Image

from alexnet_jax.cli import command
from alexnet_jax.data import photos, recognition, shards
from alexnet_jax.program import summary

WIDTH, HEIGHT = 500, 375
CLASSES = 5
# Different pictures; the files are copies of them.
PICTURES = 100
VALIDATION = 0.1


def define_flags() -> None:
  flags.DEFINE_integer("pictures", 6000, "Files in the folders.", lower_bound=1)
  flags.DEFINE_integer(
    "turn_pictures", 300, "Pictures of a turn.", lower_bound=1
  )
  flags.DEFINE_integer("turns", 8, "Of each program.", lower_bound=1)
  flags.DEFINE_multi_integer("jobs", [1, 2], "Processes of `prepare`.")


def make_pictures() -> list[bytes]:
  """Cuts pictures from photographs, and encodes them as JPEG."""
  rng = np.random.default_rng(0)
  sources = []
  for path in photos.find_pictures():
    with Image.open(path) as file:
      sources.append(file.convert("RGB"))
  encoded = []
  for source in itertools.islice(itertools.cycle(sources), PICTURES):
    scale = min(source.width / WIDTH, source.height / HEIGHT)
    scale *= rng.uniform(0.5, 1)
    width, height = int(WIDTH * scale), int(HEIGHT * scale)
    left = int(rng.integers(0, source.width - width + 1))
    top = int(rng.integers(0, source.height - height + 1))
    cut = source.crop((left, top, left + width, top + height))
    picture = cut.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling="4:2:0")
    encoded.append(file.getvalue())
  return encoded


def write_folders(
  folder: pathlib.Path, encoded: list[bytes], count: int
) -> None:
  """Writes `count` files into folders of classes."""
  for number in range(CLASSES):
    (folder / f"class {number}").mkdir(parents=True)
  for number in range(count):
    path = folder / f"class {number % CLASSES}" / f"{number}.jpg"
    path.write_bytes(encoded[number % len(encoded)])


def work_alone(encoded: bytes) -> bytes:
  """Decodes, scales and encodes a picture of at least 256 pixels."""
  picture = Image.open(io.BytesIO(encoded)).convert("RGB")
  scale = shards.SIDE / min(picture.size)
  width, height = (round(scale * length) for length in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - shards.SIDE) // 2, (height - shards.SIDE) // 2
  square = picture.crop((left, top, left + shards.SIDE, top + shards.SIDE))
  file = io.BytesIO()
  square.save(file, "JPEG", quality=shards.QUALITY, subsampling="4:2:0")
  return file.getvalue()


def make_shard(
  pictures: pathlib.Path, folder: pathlib.Path, count: int
) -> shards.Shard:
  """Makes the shard that has the first `count` pictures."""
  found = recognition.find_origin(
    str(pictures), subset=False, validation=VALIDATION
  )
  labels = {name: label for label, name in enumerate(found.class_names)}
  listing = found.list_files(labels, is_imagenet=False).shuffle()
  return shards.Shard(
    path=str(folder / "shard"),
    notes=str(folder / "notes.npz"),
    origin=found,
    scratch=str(folder),
    members=tuple(listing.files["train"][:count]),
    format=shards.Format(
      encoding="jpeg", side=shards.SIDE, num_classes=CLASSES
    ),
    rotate=True,
    leave_out=False,
    has_sums=True,
  )


def measure(work: Callable[[], object]) -> tuple[float, float]:
  """Returns seconds of CPU, of ended child processes too, and on the clock."""
  clock, cpu = time.perf_counter(), _find_cpu_seconds()
  work()
  return _find_cpu_seconds() - cpu, time.perf_counter() - clock


def _find_cpu_seconds() -> float:
  found = (
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(one.ru_utime + one.ru_stime for one in found)


def describe(ratios: list[float]) -> str:
  """Returns the median of ratios, with the lowest and highest."""
  return (
    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
  )


def prepare(folder: pathlib.Path, data_dir: pathlib.Path, jobs: int) -> None:
  """Runs the command.

  Raises:
    ValueError: it failed; has its last line.
  """
  ended = subprocess.run(
    [
      *(sys.executable, "-m", "alexnet_jax.prepare", f"--from={folder}"),
      *(f"--data_dir={data_dir}", f"--validation={VALIDATION}"),
      *("--name=pictures", f"--jobs={jobs}"),
    ],
    capture_output=True,
    text=True,
  )
  if ended.returncode:
    raise ValueError(f"prepare failed: {ended.stderr.splitlines()[-1]}")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  count = min(values.turn_pictures, values.pictures)
  encoded = make_pictures()

  def alone():
    for number in range(count):
      work_alone(encoded[number % len(encoded)])

  table = make_table(encoded)
  with command.exit_on_error(ValueError, OSError):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      write_folders(folder / "pictures", encoded, values.pictures)
      shard = make_shard(folder / "pictures", folder, count)
      count = len(shard.members)  # without those for validation
      turns = [
        (measure(alone), measure(lambda: shards.write(shard)))
        for _ in range(values.turns)
      ]
      add_row(table, "shards", turns, count, count)
      for jobs in values.jobs:
        data_dir = folder / f"jobs {jobs}"
        before = measure(alone)
        whole = measure(
          lambda data_dir=data_dir, jobs=jobs: prepare(
            folder / "pictures", data_dir, jobs
          )
        )
        pairs = [
          ((cpu, clock / jobs), whole)
          for cpu, clock in (before, measure(alone))
        ]
        add_row(table, f"--jobs={jobs}", pairs, count, values.pictures)
  command.make_console().print(table)


def make_table(encoded: list[bytes]) -> rich.table.Table:
  """Makes a table without rows; `encoded` are the pictures."""
  return summary.make_table(
    f"alone / prepare, pictures of {WIDTH} x {HEIGHT}, "
    f"{sum(map(len, encoded)) / len(encoded) / 1e3:.0f} kB",
    *("prepare", "> pictures", "> ms", "> alone, ms", "> by CPU", "> by clock"),
  )


def add_row(
  table: rich.table.Table,
  name: str,
  pairs: list[tuple[tuple[float, float], tuple[float, float]]],
  alone: int,
  prepared: int,
) -> None:
  """Adds a row with ratios of times per picture.

  Args:
    pairs: seconds by CPU and clock of `alone`, and of `prepare`.
    alone, prepared: pictures that these seconds are for.
  """
  ratios = [
    [
      (one / alone) / (other / prepared)
      for one, other in zip(*pair, strict=True)
    ]
    for pair in pairs
  ]
  milliseconds = (
    statistics.median(pair[number][0] for pair in pairs) / pictures * 1e3
    for number, pictures in ((1, prepared), (0, alone))
  )
  table.add_row(
    name,
    f"{prepared:,}",
    *(f"{one:.2f}" for one in milliseconds),
    *(describe(list(column)) for column in zip(*ratios, strict=True)),
  )


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

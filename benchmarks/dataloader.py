"""Compares the input with PyTorch's: python -m benchmarks.dataloader

How many images per second does this project's input deliver, compared with
PyTorch's? Both read the same real pictures, squares of 256 pixels as JPEG, from
this machine's disk. PyTorch reads files in folders by class with
`torch.utils.data.DataLoader`, as in its own ImageNet example. This project
reads records of `imagenet256/jpeg`. Both read in random order without an end,
so that neither pays for the ends of epochs, and from files that the system
holds in memory.

What each side does for a batch on the host:

- PyTorch, in as many worker processes as there are cores: reads a file, decodes
  it with Pillow, crops 224 x 224 at random, mirrors half of the crops, converts
  them to float32, adds AlexNet's color noise, normalizes, collates, and hands
  the batch over to the main process.
- alexnet_jax, in as many threads: reads a record, checks its hash, decodes it,
  and writes it into the batch as bytes, 256 x 256. Crops, mirroring, colors and
  float32 are part of the training step, on the devices.

So the two do different work by design: the host does only what the devices
cannot do. The row `JPEG, augmented` adds the step's augmentation of such a
batch, on this machine's CPU: crop, mirror, colors, mean, float32. With an
accelerator, this is part of its step. The row `pixels` reads `imagenet256/raw`,
which needs no decoder. No batch is copied to an accelerator, and nothing is
trained.
"""

import contextlib
import importlib.metadata
import itertools
import pathlib
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from array_record.python import array_record_module
from PIL import Image
from sklearn import datasets

from alexnet_jax.bench import input
from alexnet_jax.cli import command
from alexnet_jax.data import cores as cores_lib
from alexnet_jax.data import host_batches, pipeline, records, shards, source
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from benchmarks import page
from configs import default

TORCH = "2.13.0"
SIDE, CROP = shards.SIDE, 224
CLASSES = 1000
PYTORCH, OURS, DECODER = "PyTorch DataLoader", "JPEG", "decoder alone"
SEED = 0
ENDLESS = 2**40
# AlexNet's color noise and the usual normalization, of pixels of 0..1, as in
# PyTorch programs.
NOISE = 0.1
VALUES = (0.2175, 0.0188, 0.0045)
VECTORS = (
  (-0.5675, 0.7192, 0.4009),
  (-0.5808, -0.0045, -0.8140),
  (-0.5836, -0.6948, 0.4203),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files:
  """A data set for DataLoader: JPEG files in folders by class, augmented.

  Args:
    folder: whose folders are the classes.
  """

  def __init__(self, folder: pathlib.Path):
    classes = sorted(path.name for path in folder.iterdir())
    self._files = [
      (str(path), classes.index(path.parent.name))
      for path in sorted(folder.glob("*/*.jpeg"))
    ]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int):
    """f32[3, 224, 224], and the class."""
    torch = import_torch()
    path, label = self._files[index]
    with open(path, "rb") as file:
      picture = Image.open(file).convert("RGB")
    top, left = torch.randint(0, SIDE - CROP + 1, (2,)).tolist()
    picture = picture.crop((left, top, left + CROP, top + CROP))
    if torch.rand(1) < 0.5:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(picture, copy=True))
    pixels = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    weights = torch.normal(0.0, NOISE, (3,)) * torch.tensor(VALUES)
    pixels += (torch.tensor(VECTORS) @ weights)[:, None, None]
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None]), label


def write_pictures(folder: pathlib.Path, count: int) -> None:
  """Writes cutouts of real photographs.

  Args:
    folder: gets files/CLASS/NUMBER.jpeg, and the same pictures as records of
      `imagenet256` in the files jpeg and raw.
    count: number of pictures.
  """
  rng = np.random.default_rng(SEED)
  photos = [
    Image.fromarray(datasets.load_sample_image(name))
    for name in ("china.jpg", "flower.jpg")
  ]
  writers = {
    encoding: array_record_module.ArrayRecordWriter(
      str(folder / encoding), shards.WRITER_OPTIONS
    )
    for encoding in ("jpeg", "raw")
  }
  for number in range(count):
    photo = photos[number % 2]
    side = int(rng.integers(150, photo.height))
    left = int(rng.integers(0, photo.width - side + 1))
    top = int(rng.integers(0, photo.height - side + 1))
    cut = photo.crop((left, top, left + side, top + side))
    square = cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    label = number % CLASSES
    path = folder / "files" / f"{label:04d}" / f"{number}.jpeg"
    path.parent.mkdir(parents=True, exist_ok=True)
    square.save(path, quality=shards.QUALITY, subsampling="4:2:0")
    images = {"jpeg": path, "raw": np.asarray(square)}
    for encoding, writer in writers.items():
      features = shards.make_features(
        encoding,
        side=SIDE,
        label=tfds.features.ClassLabel(num_classes=CLASSES),
      )
      example = {
        "image": images[encoding],
        "label": label,
        "file_name": path.name,
      }
      writer.write(features.serialize_example(example))
  for writer in writers.values():
    writer.close()


def open_records(
  folder: pathlib.Path, encoding: str, count: int
) -> records.Records:
  shard = types.SimpleNamespace(
    filename=str(folder / encoding), skip=0, take=count
  )
  return records.Records(
    source=source.Source(encoding, [shard]),
    image_key="image",
    label_key="label",
    num_classes=CLASSES,
    stored_size=SIDE,
    raw_shape=(SIDE, SIDE, 3) if encoding == "raw" else None,
  )


def read_with_torch(
  torch, folder: pathlib.Path, *, batch_size: int, workers: int
) -> Iterator[Any]:
  """Batches without an end; the workers start now and stay."""
  files = Files(folder)
  sampler = torch.utils.data.RandomSampler(
    files, replacement=True, num_samples=10**9
  )
  loader = torch.utils.data.DataLoader(
    files,
    batch_size=batch_size,
    sampler=sampler,
    num_workers=workers,
    persistent_workers=True,
  )
  return iter(loader)


def read_ours(split: records.Records, *, batch_size: int) -> Iterator[Any]:
  return host_batches.train_batches(
    split,
    rows=range(batch_size),
    batch_size=batch_size,
    seed=SEED,
    steps=range(ENDLESS),
    threads=None,
  )


def read_augmented(
  split: records.Records, *, batch_size: int
) -> Iterator[jax.Array]:
  """Batches on one CPU device, augmented there as a step does it."""
  config = default.get_config("imagenet")
  config.batch_size = batch_size
  program = run_lib.make_program(config, *settings.check(config))
  augmentation, spec = program.augmentation, program.specs.images

  @jax.jit
  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    draws = augmentation.draw(key, batch_size, spec=spec)
    return augmentation.apply(images, draws)

  batches = pipeline.train_batches(
    split,
    batch_size=batch_size,
    seed=SEED,
    first_step=0,
    num_steps=ENDLESS,
    shardings=program.batch_shardings,
    threads=None,
    batches_ahead=2,
  )
  key = jax.random.key(SEED)
  with contextlib.closing(batches), jax.set_mesh(program.mesh):
    for step, batch in enumerate(batches):
      yield augment(jax.random.fold_in(key, step), batch.images)


def measure(
  inputs: dict[str, Iterator[Any]],
  decode: Callable[[int, int], None],
  *,
  threads: int,
  rounds: int,
  seconds: float,
  batch_size: int,
  warm: int,
) -> dict[str, list[float]]:
  """Returns images per second of each input, round by round; they take turns.

  Args:
    inputs: each reads a few batches ahead and then waits.
    decode: (thread, turn) -> None; decodes an image.
    threads: that decode.
    rounds: how often each input is measured.
    seconds: of each input in each round.
    batch_size: images in a batch.
    warm: batches before the clock starts, more than are read ahead.
  """
  rates = {name: [] for name in (*inputs, DECODER)}
  for _, (name, batches) in itertools.product(range(rounds), inputs.items()):
    if name == OURS:
      rates[DECODER].append(input.in_threads(decode, threads, seconds))
    per_second, _ = input.measure_batches(batches, seconds, warm=warm)
    rates[name].append(batch_size * per_second)
    time.sleep(1)  # until it is ahead again and idle
  return rates


def to_ratio(rates: list[float], others: list[float]) -> float:
  """The median of the ratios of the rounds."""
  return statistics.median(
    rate / other for rate, other in zip(rates, others, strict=True)
  )


def make_rows(rates: dict[str, list[float]], cores: int) -> list[tuple]:
  """Rows of name, images per second, per core, and by PyTorch's rate."""
  rows = []
  for name, found in rates.items():
    rate = statistics.median(found)
    ratio = f"{to_ratio(found, rates[PYTORCH]):.1f}"
    row = (f"{rate:,.0f}", f"{rate / cores:,.0f}", ratio)
    rows.append((name, *row))
  return rows


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  with command.exit_on_error(ImportError, ValueError):
    torch = import_torch()
    page.check_markdown()
  cores, size = cores_lib.count_cores(), values.batch_size
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_pictures(folder, values.images)
    jpeg, raw = (
      open_records(folder, encoding, values.images)
      for encoding in ("jpeg", "raw")
    )
    # First, since its workers are forks of this process.
    theirs = read_with_torch(
      torch, folder / "files", batch_size=size, workers=cores
    )
    next(theirs)
    jax.config.update("jax_platforms", "cpu")
    inputs = {
      PYTORCH: theirs,
      OURS: read_ours(jpeg, batch_size=size),
      "pixels": read_ours(raw, batch_size=size),
      "JPEG, augmented": read_augmented(jpeg, batch_size=size),
    }
    count = min(input.SAMPLE, values.images)
    sample = [jpeg.read_encoded(index)[0] for index in range(count)]
    with contextlib.ExitStack() as stack:
      for name, batches in inputs.items():
        if name != PYTORCH:
          stack.callback(batches.close)
      rates = measure(
        inputs,
        input.make_decoder(jpeg, sample, cores),
        threads=cores,
        rounds=values.rounds,
        seconds=values.seconds,
        batch_size=size,
        warm=2 * cores + 6,
      )
  rows = make_rows(rates, cores)
  table = page.Table(
    "", ("input", "> images/s", "> per core", "> times PyTorch"), rows
  )
  console = command.make_console()
  console.print(table.to_rich())
  about = (
    f"{cores} cores, batches of {size}, {values.images:,} pictures; medians of "
    f"{values.rounds} rounds of {values.seconds:g} s, in turns; JPEG at "
    f"{to_ratio(rates[OURS], rates[DECODER]):.2f} of the decoder alone. "
    + ", ".join(
      f"{package} {importlib.metadata.version(package)}"
      for package in ("torch", "pillow", "simplejpeg", "jax")
    )
  )
  command.print_line(console, about)
  page.write(
    "How fast is the input, compared with PyTorch's?",
    "`python -m benchmarks.dataloader --markdown=docs/input_speed.md` "
    f"writes this page (`pip install torch=={TORCH}`).",
    __doc__,
    table.to_markdown(),
    about,
  )


def import_torch() -> Any:
  """Imports PyTorch, which is not a requirement of this project."""
  try:
    import torch
    import torch.utils.data
  except ImportError as error:
    raise ImportError(
      f"PyTorch is not installed ({error}); this comparison needs it: "
      f"pip install torch=={TORCH}"
    ) from None
  return torch


def define_flags() -> None:
  """Not on import: other benchmarks have flags of the same names."""
  flags.DEFINE_integer("images", 4096, "Pictures to write.", lower_bound=1)
  flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
  flags.DEFINE_integer("rounds", 9, "Rounds to measure.", lower_bound=1)
  flags.DEFINE_float("seconds", 2.0, "Seconds of each input in each round.")
  page.define_markdown()


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

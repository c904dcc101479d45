"""Shards of squares: records made from the files of an origin, and pixel sums.

A shard is a function of its list of files, and has its name only once it is
complete and its notes are beside it. So shards can be written in any order, in
any process, and never twice.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import atomic, decode, origin, statistics

# Side of the squares of `imagenet256`, pixels. Source: Krizhevsky et al. 2012,
# section 2.
SIDE = 256
# Of the stored JPEGs; the colors have half the resolution, as in the files of
# ImageNet. Source: the released code (cuda-convnet2, make-data, pyext.h).
QUALITY = 95
# As TFDS's own, but not compressed: a JPEG gets no smaller, and reads a sixth
# slower; pixels shrink by a third, and read at a fifth of the speed.
WRITER_OPTIONS = "group_size:1,uncompressed"

# What can be odd about a file, in the order of the final report.
ODDITIES = {
  "cmyk": "CMYK, converted to RGB",
  "not_jpeg": "not a JPEG in spite of its name",
  "several": "of several pictures (MPO), the first one taken",
  "gray": "gray, stored as RGB",
  "enlarged": "smaller than the stored squares, enlarged",
  "left_out": "unreadable, left out",
}
# Notes name all files with these oddities, and some of the others.
_ALL_NAMED = ("cmyk", "not_jpeg", "left_out")
_NAMED = 5
_JPEG_ENDINGS = (".jpg", ".jpeg")
# Stored images whose pixels are summed together: caches then hold what this
# needs, and it takes 0.6 of the time of one after each file.
_AT_ONCE = 32
# Arrays in the notes of a shard with sums: attributes of PixelSums.
_SUMS = ("images", "values", "products")
# A JPEG with others behind it, as cameras write, has a format of its own.
_JPEGS = ("JPEG", "MPO")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
  """What is noted beside a shard when it is written.

  Attributes:
    records: in the shard.
    bytes: of its file.
    odd: {oddity: number of files}, see `ODDITIES`.
    names: {oddity: names of the first files, or of all of a rare oddity}.
    left_out: (place, reason) of each file left out.
  """

  records: int
  bytes: int
  odd: dict[str, int]
  names: dict[str, list[str]]
  left_out: list[list[str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
  """What a record is.

  Attributes:
    encoding: jpeg or raw.
    side: of the square, pixels.
    num_classes: labels are 0..num_classes-1.
  """

  encoding: str
  side: int
  num_classes: int

  @property
  def sums_bytes(self) -> int:
    """Of the sums beside a shard: 64 bits for each value of a square."""
    return 8 * self.side * self.side * 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """A shard to write.

  Attributes:
    path: of the records.
    notes: path of the notes, and of the pixel sums.
    origin: of the files.
    scratch: the folder that the origin unpacks to.
    members: the files, in the order of the records.
    format: of the records.
    rotate: apply a rotation that a camera has noted in a file.
    leave_out: leave unreadable files out; if False they are an error, and a
      shard that lacks some is not done.
    has_sums: sum up the pixels.
  """

  path: str
  notes: str
  origin: origin.Origin
  scratch: str
  members: tuple[origin.Member, ...]
  format: Format
  rotate: bool
  leave_out: bool
  has_sums: bool

  def is_done(self) -> bool:
    """Tests whether the shard is complete, and lacks no file it should have."""
    if not (os.path.exists(self.path) and os.path.exists(self.notes)):
      return False
    return self.leave_out or "left_out" not in self.read_notes().odd

  def read_notes(self) -> Notes:
    with np.load(self.notes) as stored:
      notes = json.loads(str(stored["notes"]))
    return Notes(**notes, bytes=os.path.getsize(self.path))

  def read_sums(self) -> statistics.PixelSums:
    """Reads the pixel sums of a shard with `has_sums`."""
    with np.load(self.notes) as stored:
      images, values, products = (stored[name] for name in _SUMS)
    return statistics.PixelSums(int(images), values, products)


def make_features(
  encoding: str, *, side: int, label: tfds.features.ClassLabel
) -> tfds.features.FeaturesDict:
  """Makes TFDS's description of a record."""
  shape = (side, side, 3)
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=shape, encoding_format="jpeg")
      if encoding == "jpeg"
      else tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
      "label": label,
      "file_name": tfds.features.Text(),
    }
  )


def find_format(features: tfds.features.FeaturesDict) -> Format:
  """Finds the format of records with features of `make_features`."""
  image = features["image"]
  is_encoded = isinstance(image, tfds.features.Image)
  return Format(
    encoding="jpeg" if is_encoded else "raw",
    side=image.shape[0],
    num_classes=features["label"].num_classes,
  )


def read_square(
  encoded: bytes, side: int, *, name: str, rotate: bool
) -> tuple[Image.Image, list[str]]:
  """Decodes a file to a square.

  Args:
    name: of the file; its ending says whether it should be a JPEG.
    rotate: apply a rotation that a camera has noted in the file.

  Returns:
    The square, RGB, and what is odd about the file, see `ODDITIES`.

  Raises:
    ValueError: the file cannot be decoded completely.
  """
  with decode.describe_errors():
    picture = decode.open_picture(io.BytesIO(encoded))
    is_jpeg = picture.format in _JPEGS
    odd = {
      "cmyk": picture.mode == "CMYK",
      "not_jpeg": not is_jpeg and name.lower().endswith(_JPEG_ENDINGS),
      "several": picture.format == "MPO",
      "gray": picture.mode == "L",
      "enlarged": min(picture.size) < side,
    }
    if rotate:
      decode.rotate(picture)
    square = decode.to_square(picture, side)
    square.info = {}  # Pillow would write a file's comment into the record
  return square, [kind for kind, applies in odd.items() if applies]


def make_record(
  square: Image.Image, member: origin.Member, format: Format
) -> tuple[bytes, bytes]:
  """Makes the record of a square, RGB.

  Returns:
    The serialized tf.train.Example, and the image that is stored in it.
  """
  if format.encoding == "jpeg":
    file = io.BytesIO()
    square.save(file, format="JPEG", quality=QUALITY, subsampling="4:2:0")
    stored = file.getvalue()
  else:
    stored = square.tobytes()
  # As the features of `make_features` are serialized, in a tenth of the time.
  example = tf_example_pb2.Example()
  features = example.features.feature
  features["image"].bytes_list.value.append(stored)
  features["label"].int64_list.value.append(member.label)
  features["file_name"].bytes_list.value.append(os.fsencode(member.name))
  return example.SerializeToString(deterministic=True), stored


def add_pixels(
  sums: statistics.PixelSums, images: list[bytes], format: Format
) -> None:
  """Adds stored images as reading returns them; JPEG has changed them a little.

  Args:
    images: second results of `make_record`.
  """
  pixels = np.empty((format.side, format.side, 3), np.uint8)
  for stored in images:
    if format.encoding == "jpeg":
      decode.decode(stored, pixels)
    else:
      decode.copy_pixels(stored, pixels.shape, pixels)
    sums.add(pixels)


def write(
  shard: Shard,
  stop: threading.Event | None = None,
  report: Callable[[], None] | None = None,
) -> None:
  """Writes a shard and its notes.

  `stop`, of threading or multiprocessing, is checked between files; `report` is
  called after each.

  Raises:
    ValueError: a file cannot be decoded, and `leave_out` is off.
    InterruptedError: `stop` was set.
    OSError: the disk is full, or the like.
  """
  decode.ignore_warnings()
  sums = statistics.PixelSums.zeros(shard.format.side)
  odd: dict[str, list[str]] = {kind: [] for kind in ODDITIES}
  left_out: list[tuple[str, str]] = []
  waiting: list[bytes] = []
  records = 0
  with atomic.replace(shard.path) as partial:
    with (
      open_writer(partial) as put,
      shard.origin.open(shard.scratch) as read,
    ):
      for member in shard.members:
        if stop is not None and stop.is_set():
          raise InterruptedError("stopped between two files")
        try:
          square, kinds = read_square(
            read(member),
            shard.format.side,
            name=member.name,
            rotate=shard.rotate,
          )
        except ValueError as error:
          place = shard.origin.locate(member)
          if not shard.leave_out:
            raise ValueError(
              f"{place} cannot be decoded ({error}). Replace it, or set "
              "--unreadable=leave_out."
            ) from error
          odd["left_out"].append(member.name)
          left_out.append((place, str(error)))
        else:
          for kind in kinds:
            odd[kind].append(member.name)
          record, stored = make_record(square, member, shard.format)
          put(record)
          records += 1
          if shard.has_sums:
            waiting.append(stored)
          if len(waiting) == _AT_ONCE:
            add_pixels(sums, waiting, shard.format)
            waiting.clear()
        if report is not None:
          report()
    add_pixels(sums, waiting, shard.format)
    # Before the shard gets its name, which says that it is complete.
    _write_notes(shard, records, odd, left_out, sums)


def _write_notes(
  shard: Shard,
  records: int,
  odd: dict[str, list[str]],
  left_out: list[tuple[str, str]],
  sums: statistics.PixelSums,
) -> None:
  odd = {kind: names for kind, names in odd.items() if names}
  notes = {
    "records": records,
    "odd": {kind: len(names) for kind, names in odd.items()},
    "names": {
      kind: names if kind in _ALL_NAMED else names[:_NAMED]
      for kind, names in odd.items()
    },
    "left_out": left_out,
  }
  arrays = {}
  if shard.has_sums:
    arrays = {name: getattr(sums, name) for name in _SUMS}
  try:
    with atomic.replace(shard.notes) as partial, open(partial, "wb") as file:
      np.savez(file, notes=json.dumps(notes), **arrays)
  except OSError as error:
    raise _make_write_error(shard.notes, error.strerror) from error


@contextlib.contextmanager
def open_writer(path: str) -> Iterator[Callable[[bytes], None]]:
  """Yields a function that appends a record to a new file."""
  writer = array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS)
  try:
    yield writer.write
  finally:
    try:
      writer.close()
    except RuntimeError as error:
      reason = str(error).partition(";")[0]
      raise _make_write_error(path, reason) from error


def _make_write_error(path: str, reason: str) -> OSError:
  return OSError(
    f"{path} cannot be written ({reason}). Make room and repeat the command: "
    "it keeps finished shards."
  )


def write_all(
  remaining: list[Shard], *, jobs: int, report: Callable[[int], None]
) -> None:
  """Writes shards, each in one process.

  After an error or Ctrl-C no further shard is started. Those in progress are
  finished after an error, and abandoned after Ctrl-C.

  Args:
    jobs: processes; 1: this one.
    report: called with the number of files done so far: after each file by one
      process, every second by several.

  Raises:
    ValueError, OSError: as `write`, or a process was killed.
  """
  if jobs == 1:
    done = itertools.count(1)
    for shard in remaining:
      write(shard, report=lambda: report(next(done)))
    return
  context = multiprocessing.get_context("spawn")  # JAX may have threads by now
  stop, done = context.Event(), context.Value("q", 0)
  with concurrent.futures.ProcessPoolExecutor(
    max(1, min(jobs, len(remaining))),
    mp_context=context,
    initializer=_start_process,
    initargs=(stop, done),
  ) as pool:
    try:
      with _without_interrupts():
        futures = {pool.submit(_write_one, shard) for shard in remaining}
      while futures:
        finished, futures = concurrent.futures.wait(
          futures, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          future.result()
        report(done.value)
    except concurrent.futures.process.BrokenProcessPool:
      raise OSError(
        "a process that wrote shards was killed, maybe for lack of memory. Set "
        f"--jobs lower than {jobs}; finished shards are kept."
      ) from None
    except KeyboardInterrupt:
      stop.set()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
  """Blocks Ctrl-C; processes started meanwhile inherit the mask for good.

  In this process, a Ctrl-C that arrives meanwhile is delivered at the end.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a process that writes shards: the event to stop, and the count of files
# done. Such objects can be passed only when a process starts.
_shared: tuple = ()


def _start_process(*shared: object) -> None:
  """Initializes a process, which then ends when its parent does."""
  global _shared
  _shared = shared

  def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _write_one(shard: Shard) -> None:
  stop, done = _shared

  def count():
    with done.get_lock():
      done.value += 1

  write(shard, stop, count)

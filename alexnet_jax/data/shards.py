"""Shards of `imagenet256`: records made from files in a tar, and pixel sums.

A shard is a function of its list of files, and has its name only once it is
complete and its notes are beside it. So shards can be written in any order, in
any process, and never twice.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
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

from alexnet_jax.data import atomic, decode, ilsvrc, statistics

# Side of the stored squares, pixels. Source: Krizhevsky et al. 2012, section 2.
SIDE = 256
# Of the stored JPEGs; the colors have half the resolution, as in the files of
# ImageNet. Source: the released code (cuda-convnet2, make-data, pyext.h).
QUALITY = 95
# Of the sums beside a shard: 64 bits for each value of a square.
SUMS_BYTES = 8 * SIDE * SIDE * 3
# As TFDS's own, but not compressed: a JPEG gets no smaller, and reads a sixth
# slower; pixels shrink by a third, and read at a fifth of the speed.
WRITER_OPTIONS = "group_size:1,uncompressed"

# What can be odd about a file, in the order of the final report.
ODDITIES = {
  "cmyk": "CMYK, converted to RGB",
  "not_jpeg": "not a JPEG in spite of its name",
  "gray": "gray, stored as RGB",
  "enlarged": f"smaller than {SIDE} pixels, enlarged",
  "left_out": "unreadable, left out",
}
# Notes name all files with these oddities, and some of the others.
_ALL_NAMED = ("cmyk", "not_jpeg", "left_out")
_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
  """What is noted beside a shard when it is written.

  Attributes:
    records: in the shard.
    bytes: of its file.
    odd: {oddity: number of files}, see `ODDITIES`.
    names: {oddity: names of the first files, or of all of a rare oddity}.
  """

  records: int
  bytes: int
  odd: dict[str, int]
  names: dict[str, list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """A shard to write.

  Attributes:
    path: of the records.
    notes: path of the notes, and of the pixel sums.
    members: the files of `tar`, in the order of the records.
    encoding: jpeg or raw.
    leave_out: leave unreadable files out; if False they are an error, and a
      shard that lacks some is not done.
    has_sums: sum up the pixels.
  """

  path: str
  notes: str
  tar: str
  members: tuple[ilsvrc.Member, ...]
  encoding: str
  leave_out: bool
  has_sums: bool

  def is_done(self) -> bool:
    """Tests whether the shard is complete, and lacks no file it should have."""
    if not self._exists() or self.is_outdated():
      return False
    return self.leave_out or "left_out" not in self.read_notes().odd

  def is_outdated(self) -> bool:
    """Tests whether an earlier version wrote it, with other names in notes."""
    return self._exists() and not (
      self.read_notes().odd.keys() <= ODDITIES.keys()
    )

  def _exists(self) -> bool:
    return os.path.exists(self.path) and os.path.exists(self.notes)

  def read_notes(self) -> Notes:
    with np.load(self.notes) as stored:
      notes = json.loads(str(stored["notes"]))
    return Notes(**notes, bytes=os.path.getsize(self.path))

  def read_sums(self) -> statistics.PixelSums:
    """Reads the pixel sums of a shard with `has_sums`."""
    with np.load(self.notes) as stored:
      return statistics.PixelSums(
        stored["images"], stored["values"], stored["products"]
      )


@functools.cache
def make_features(encoding: str) -> tfds.features.FeaturesDict:
  """Makes TFDS's description of a record."""
  shape = (SIDE, SIDE, 3)
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=shape, encoding_format="jpeg")
      if encoding == "jpeg"
      else tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
      "label": tfds.features.ClassLabel(names_file=ilsvrc.labels_file()),
      "file_name": tfds.features.Text(),
    }
  )


def read_square(encoded: bytes) -> tuple[np.ndarray, list[str]]:
  """Decodes a file of ImageNet to a square.

  Returns:
    u8[256, 256, 3], and what is odd about the file, see `ODDITIES`.

  Raises:
    ValueError: the file cannot be decoded completely.
  """
  try:
    picture = Image.open(io.BytesIO(encoded), formats=decode.FORMATS)
    picture.load()
    odd = {
      "cmyk": picture.mode == "CMYK",
      "not_jpeg": picture.format != "JPEG",
      "gray": picture.mode == "L",
      "enlarged": min(picture.size) < SIDE,
    }
    pixels = np.asarray(decode.to_square(picture, SIDE))
  except MemoryError:
    raise
  except Exception as error:  # Pillow's plugins raise errors of any type
    raise ValueError(decode.describe_error(error)) from error
  return pixels, [kind for kind, applies in odd.items() if applies]


def make_record(
  pixels: np.ndarray, member: ilsvrc.Member, encoding: str
) -> tuple[bytes, np.ndarray]:
  """Makes the record of a square, u8[256, 256, 3], from a file of a tar.

  Returns:
    The serialized tf.train.Example, and the pixels that reading it returns,
    u8[256, 256, 3]; JPEG changes them a little.
  """
  image = decoded = pixels
  if encoding == "jpeg":
    image = io.BytesIO()
    Image.fromarray(pixels).save(
      image, format="JPEG", quality=QUALITY, subsampling="4:2:0"
    )
    decoded = np.asarray(Image.open(image))
    image.seek(0)
  example = {"image": image, "label": member.label, "file_name": member.name}
  serialized = make_features(encoding).serialize_example(example)
  # Protocol buffers serialize features in any order.
  parsed = tf_example_pb2.Example.FromString(serialized)
  return parsed.SerializeToString(deterministic=True), decoded


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
  sums = statistics.PixelSums.zeros(SIDE)
  odd: dict[str, list[str]] = {kind: [] for kind in ODDITIES}
  records = 0
  with atomic.replace(shard.path) as partial:
    with _open_writer(partial) as put, open(shard.tar, "rb") as tar:
      for member in shard.members:
        if stop is not None and stop.is_set():
          raise InterruptedError("stopped between two files")
        try:
          pixels, kinds = read_square(ilsvrc.read_member(tar, member))
        except ValueError as error:
          if not shard.leave_out:
            raise ValueError(
              f"{member.name} in {shard.tar} cannot be decoded ({error}). "
              "Download the tar again, or set --unreadable=leave_out."
            ) from error
          odd["left_out"].append(member.name)
        else:
          for kind in kinds:
            odd[kind].append(member.name)
          record, decoded = make_record(pixels, member, shard.encoding)
          put(record)
          records += 1
          if shard.has_sums:
            sums.add(decoded)
        if report is not None:
          report()
    # Before the shard gets its name, which says that it is complete.
    _write_notes(shard, records, odd, sums)


def _write_notes(
  shard: Shard,
  records: int,
  odd: dict[str, list[str]],
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
  }
  arrays = vars(sums) if shard.has_sums else {}
  try:
    with atomic.replace(shard.notes) as partial, open(partial, "wb") as file:
      np.savez(file, notes=json.dumps(notes), **arrays)
  except OSError as error:
    raise _make_write_error(shard.notes, error.strerror) from error


@contextlib.contextmanager
def _open_writer(path: str) -> Iterator[Callable[[bytes], None]]:
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
    report: called every second with the number of files done so far.

  Raises:
    ValueError, OSError: as `write`, or a process was killed.
  """
  if jobs == 1:
    done = 0
    for shard in remaining:
      write(shard)
      done += len(shard.members)
      report(done)
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

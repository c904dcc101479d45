"""One shard of `imagenet256`: from files in a tar to records, and their sums.

A shard is a function of its list of files, and stands under its own name
only when it is whole, with the sums of its pixels beside it. So shards can be
written in any order, in any process, and never twice.
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

from alexnet_jax.data import decode, ilsvrc, statistics

# Side of the stored squares, pixels. Source: Krizhevsky et al. 2012, section 2.
SIDE = 256
# Of the stored JPEGs; the colors have half the resolution, as in the files of
# ImageNet. That of the released code (cuda-convnet2, make-data, pyext.h).
QUALITY = 95
# Of the sums beside a shard: those of the values at each place, 64 bits each.
SUMS_BYTES = 8 * SIDE * SIDE * 3
# As TFDS's own, but not compressed: a JPEG gets no smaller, and reads a sixth
# slower; pixels shrink by a third, and read at a fifth of the speed.
WRITER_OPTIONS = "group_size:1,uncompressed"

# What is told of a file, in the order of the report.
KINDS = {
  "cmyk": "CMYK, converted to RGB",
  "not_jpeg": "not a JPEG in spite of its name",
  "gray": "gray, stored as RGB",
  "enlarged": f"smaller than {SIDE} pixels, enlarged",
  "left_out": "unreadable, left out",
}
_ALL_NAMED = ("cmyk", "not_jpeg", "left_out")
_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """What to write, and where.

  Attributes:
    path: of the records.
    notes: of the sums and the odd files.
    tar: that holds the files.
    members: the files, in the order of the records.
    encoding: jpeg or raw.
    leave_out: whether unreadable files are left out; else they are an error,
      and a shard that lacks some is not done.
    has_sums: whether the pixels are summed.
  """

  path: str
  notes: str
  tar: str
  members: tuple[ilsvrc.Member, ...]
  encoding: str
  leave_out: bool
  has_sums: bool

  def is_done(self) -> bool:
    if not os.path.exists(self.path) or not os.path.exists(self.notes):
      return False
    return self.leave_out or "left_out" not in read_notes(self).odd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
  """What is known of a shard that has been written.

  Attributes:
    records: in the shard.
    bytes: of its file.
    odd: {kind: how many files}, kinds as in `KINDS`.
    names: {kind: names of the first of them}; of rare kinds all.
  """

  records: int
  bytes: int
  odd: dict[str, int]
  names: dict[str, list[str]]


@functools.cache
def make_features(encoding: str) -> tfds.features.FeaturesDict:
  """What a record holds."""
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
  """Decodes a file of ImageNet and brings it to the square.

  Args:
    encoded: the file.

  Returns:
    u8[256, 256, 3], and what is odd about the file: kinds as in `KINDS`.

  Raises:
    ValueError: the file cannot be decoded whole.
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
    pixels = np.asarray(decode.cut(picture, SIDE))
  except MemoryError:
    raise
  except Exception as error:  # Pillow's plugins raise what they like
    raise ValueError(decode.describe(error)) from error
  return pixels, [kind for kind, applies in odd.items() if applies]


def make_record(
  pixels: np.ndarray, member: ilsvrc.Member, encoding: str
) -> tuple[bytes, np.ndarray]:
  """Makes the record of a square.

  Args:
    pixels: u8[256, 256, 3].
    member: the file that it comes from.
    encoding: jpeg or raw.

  Returns:
    The serialized tf.train.Example, and the pixels that come out of it again:
    u8[256, 256, 3], for JPEG not quite those that go in.
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
  # Protocol buffers leave the order of the features to chance.
  parsed = tf_example_pb2.Example.FromString(serialized)
  return parsed.SerializeToString(deterministic=True), decoded


def write(
  shard: Shard,
  stop: threading.Event | None = None,
  report: Callable[[], None] | None = None,
) -> None:
  """Writes a shard; nothing stands under its name before it is whole.

  Args:
    shard: what to write.
    stop: to give up between two files; of threading or of multiprocessing.
    report: called after each file.

  Raises:
    ValueError: a file cannot be decoded, and `leave_out` is off.
    InterruptedError: `stop` was set.
    OSError: the disk is full, or the like.
  """
  sums = statistics.Sums(SIDE)
  odd: dict[str, list[str]] = {kind: [] for kind in KINDS}
  records = 0
  with _writer(f"{shard.path}.partial") as put:
    with open(shard.tar, "rb") as tar:
      for member in shard.members:
        if stop is not None and stop.is_set():
          raise InterruptedError("stopped between two files")
        try:
          pixels, kinds = read_square(ilsvrc.read(tar, member))
        except ValueError as error:
          if not shard.leave_out:
            raise ValueError(
              f"{member.name} in {shard.tar} cannot be decoded ({error}). "
              "Fetch the tar again, or set --unreadable=leave_out."
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
  notes = {
    "records": records,
    "odd": {kind: len(names) for kind, names in odd.items() if names},
    "names": {
      kind: names if kind in _ALL_NAMED else names[:_NAMED]
      for kind, names in odd.items()
      if names
    },
  }
  try:
    with open(f"{shard.notes}.partial", "wb") as file:
      arrays = sums.to_arrays() if shard.has_sums else {}
      np.savez(file, notes=json.dumps(notes), **arrays)
      os.fsync(file.fileno())
  except OSError as error:
    raise _cannot_write(shard.notes, error.strerror) from error
  os.replace(f"{shard.notes}.partial", shard.notes)
  os.replace(f"{shard.path}.partial", shard.path)


def read_notes(shard: Shard) -> Notes:
  """What `write` has left beside a shard."""
  with np.load(shard.notes) as stored:
    notes = json.loads(str(stored["notes"]))
  return Notes(**notes, bytes=os.path.getsize(shard.path))


def read_sums(shard: Shard) -> statistics.Sums:
  """Of the pixels of a shard that has them."""
  with np.load(shard.notes) as stored:
    return statistics.Sums.from_arrays(stored)


@contextlib.contextmanager
def _writer(path: str) -> Iterator[Callable[[bytes], None]]:
  """Writes records to a file; on the disk, not in memory alone, at the end."""
  writer = array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS)
  try:
    yield writer.write
  finally:
    try:
      writer.close()
    except RuntimeError as error:
      reason = str(error).partition(";")[0]
      raise _cannot_write(path, reason) from error
  with open(path, "rb") as file:
    os.fsync(file.fileno())


def _cannot_write(path: str, reason: str) -> OSError:
  return OSError(
    f"{path} cannot be written ({reason}). Finished shards are kept: make "
    "room, and give the same command again."
  )


def write_all(
  waiting: list[Shard], *, jobs: int, report: Callable[[int], None]
) -> None:
  """Writes shards, each in one process.

  After an error or Ctrl-C no further shard is begun. After an error those that
  were begun are finished; after Ctrl-C they are dropped.

  Args:
    waiting: the shards.
    jobs: processes; 1: this one.
    report: called every second with the files done so far.

  Raises:
    ValueError, OSError: as `shards.write`, or a process was killed.
  """
  if jobs == 1:
    done = 0
    for shard in waiting:
      write(shard)
      done += len(shard.members)
      report(done)
    return
  context = multiprocessing.get_context("spawn")  # JAX may have threads by now
  stop, done = context.Event(), context.Value("q", 0)
  with concurrent.futures.ProcessPoolExecutor(
    max(1, min(jobs, len(waiting))),
    mp_context=context,
    initializer=_start_process,
    initargs=(stop, done),
  ) as pool:
    try:
      with _without_interrupts():
        futures = {pool.submit(_write_one, shard) for shard in waiting}
      while futures:
        finished, futures = concurrent.futures.wait(
          futures, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          future.result()
        report(done.value)
    except concurrent.futures.process.BrokenProcessPool:
      raise OSError(
        "a process that wrote shards was killed, maybe for want of memory; "
        f"expected {jobs} to go on. Set --jobs lower; finished shards are kept."
      ) from None
    except KeyboardInterrupt:
      stop.set()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
  """Processes started meanwhile leave Ctrl-C to this one, for good.

  They inherit that it is blocked. Here one that comes meanwhile is not lost.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a process that writes shards: the signal to stop, and the files done. Such
# objects can be handed over only when a process starts.
_shared: tuple = ()


def _start_process(*shared: object) -> None:
  """Has the process end with its parent, however that one ends."""
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

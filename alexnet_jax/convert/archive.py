"""Reads files that have several arrays: PyTorch's .pth, and NumPy's .npz.

Nothing is unpacked to disk, and no more is unpacked than `MAX_BYTES`.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib

import numpy as np

from alexnet_jax.convert import unpickle

# Of a file, and of what it holds: eight times the largest file in use.
MAX_BYTES = 2**31
_OUTSIDE = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:|\\|\0")
# What zipfile raises for damaged entries, and for what it cannot read, such as
# passwords and later versions.
_ERRORS = (
  *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
  *(ValueError, RuntimeError, NotImplementedError),
)
_PICKLE = re.compile(r"(?P<folder>([^/]+/)?)data\.pkl")


def read_file(path: str, *, flag: str) -> bytes:
  """Reads a file of a user.

  Args:
    flag: that names it, for errors.

  Raises:
    OSError: it cannot be read.
    ValueError: it is too large, or no file.
  """
  try:
    found = os.stat(path)
    mode, size = found.st_mode, found.st_size
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
      raise ValueError(
        f"{path!r} is a pipe or a device, which may have no end, expected a "
        f"file. Set --{flag}."
      )
    if size > MAX_BYTES:
      raise ValueError(
        f"the file {path!r} has {size:,} bytes, expected at most "
        f"{MAX_BYTES:,}. Set --{flag}."
      )
    with open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise OSError(
      f"the file {path!r} cannot be read: {error.strerror}. Set --{flag}."
    ) from error


def open_zip(contents: bytes) -> zipfile.ZipFile:
  """Opens a zip file in memory, and checks its list of entries.

  Raises:
    ValueError: it is damaged, too large, or has a name that is no plain path.
  """
  try:
    archive = zipfile.ZipFile(io.BytesIO(contents))
  except _ERRORS as error:
    raise ValueError(
      f"the zip file is damaged or ends early ({error}). Download it again"
    ) from error
  entries = archive.infolist()
  names = archive.namelist()
  for name in names:
    if _OUTSIDE.search(name):
      raise ValueError(
        f"its entry {name[:200]!r} has a path outside of it, expected a plain "
        "name"
      )
  if len(set(names)) < len(names):
    raise ValueError("two of its entries have the same name")
  total = sum(entry.file_size for entry in entries)
  if total > MAX_BYTES:
    raise ValueError(
      f"its entries have {total:,} bytes, expected at most {MAX_BYTES:,}"
    )
  return archive


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
  """Reads an entry, of no more bytes than the zip file says."""
  try:
    return archive.read(name)
  except _ERRORS as error:
    raise ValueError(
      f"its entry {name[:200]!r} is damaged ({error}). Download it again"
    ) from error


def find_pickle(archive: zipfile.ZipFile) -> str | None:
  """Returns the folder in a zip file of PyTorch; None: it is none."""
  matches = map(_PICKLE.fullmatch, archive.namelist())
  found = [match for match in matches if match]
  return found[0]["folder"] if len(found) == 1 else None


def read_torch(archive: zipfile.ZipFile, folder: str) -> object:
  """Reads what `torch.save` has saved, as far as it is arrays.

  Args:
    archive: from `open_zip`.
    folder: from `find_pickle`.

  Raises:
    RefusedError, ValueError: see `unpickle.load`.
  """
  entries = {entry.filename: entry for entry in archive.infolist()}
  for name, entry in entries.items():
    # PyTorch does not compress; so no entry is larger than the file.
    if entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f"its entry {name[:200]!r} is compressed")
  order, order_name = "<", f"{folder}byteorder"
  if order_name in entries:
    order = "<" if read_entry(archive, order_name).strip() == b"little" else ">"
  kept: dict[str, np.ndarray] = {}

  def find_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
    if key not in kept:
      entry = entries.get(f"{folder}data/{key}")
      if entry is None:
        raise ValueError(f"there is no entry data/{key[:80]}")
      if entry.file_size != count * dtype.itemsize:
        raise ValueError(
          f"entry data/{key[:80]} has {entry.file_size:,} bytes for "
          f"{count:,} values of {dtype.name}"
        )
      kept[key] = np.frombuffer(
        read_entry(archive, entry.filename), dtype.newbyteorder(order)
      )
    return kept[key]

  pickled = io.BytesIO(read_entry(archive, f"{folder}data.pkl"))
  return unpickle.load(pickled, find_storage=find_storage)


def read_old_torch(contents: bytes) -> object:
  """Reads what `torch.save` has saved before version 1.6, without a zip file.

  Pickles of a number, a version, the machine, the values, and the keys of the
  storages; then the storages, each with its number of values before it.

  Raises:
    RefusedError, ValueError: see `unpickle.load`.
  """
  file = io.BytesIO(contents)
  for _ in range(2):
    unpickle.load(file)
  machine = unpickle.load(file)
  if not isinstance(machine, dict) or not machine.get("little_endian"):
    raise ValueError("it is of a machine with another byte order")
  start, kept = file.tell(), {}

  def announce(key: str, dtype: np.dtype, count: int) -> np.ndarray:
    """Stands in for a storage, whose values come later."""
    if key not in kept:
      total = sum(values.nbytes for values in kept.values())
      if total + count * dtype.itemsize > len(contents):
        raise ValueError(f"storage {key[:80]!r} has more values than the file")
      kept[key] = np.zeros(count, dtype)
    return kept[key]

  unpickle.load(file, find_storage=announce)
  for key in unpickle.load(file):
    if not isinstance(key, str) or key not in kept:
      raise ValueError("it has a storage that no tensor uses")
    values = kept[key]
    if struct.unpack("<q", file.read(8)) != (values.size,):
      raise ValueError(f"storage {key[:80]!r} has another size")
    kept[key] = np.frombuffer(contents, values.dtype, values.size, file.tell())
    file.seek(values.nbytes, io.SEEK_CUR)
  file.seek(start)
  return unpickle.load(file, find_storage=lambda key, *_: kept[key])


def read_npz(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  """Reads an .npz whose entries are arrays of numbers or of text.

  Raises:
    ValueError: an entry is none; names it.
  """
  arrays = {}
  for name in archive.namelist():
    try:
      if not name.endswith(".npy"):
        raise ValueError("no .npy")
      array = np.lib.format.read_array(
        io.BytesIO(read_entry(archive, name)), allow_pickle=False
      )
    except Exception as error:  # of the parser of its header, too
      raise ValueError(
        f"its entry {name[:200]!r} is no array of numbers ({error})"
      ) from error
    arrays[name.removesuffix(".npy")] = array
  return arrays

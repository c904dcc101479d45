"""Pictures in parquet files, as hubs serve ImageNet; needs pyarrow.

    train-00000-of-00294.parquet ...  validation-00000-of-00014.parquet ...

A row has `image`, a struct of the bytes and a path, and `label`. Records are in
another order than rows, and a parquet file has no fast access to a row: each
file is read once, front to back, and its pictures are kept beside the
unfinished set until the set is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from array_record.python import array_record_module

from alexnet_jax.data import atomic, ilsvrc, origin, shards

# Beginnings of the names of the files of a split.
_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val")}
_FILE = re.compile(
  r"([a-z]+)(?:-(?P<index>\d+)-of-(?P<count>\d+))?(?:-[0-9a-f]+)?\.parquet"
)
_EXPECTED = (
  "columns image, a struct of bytes and path, and label, an integer of 64 bits"
)
# Rows to read at once; read one by one only to measure.
_ROWS = 64
# No read-ahead: records are read in any order.
_READER_OPTIONS = "readahead_buffer_size:0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(origin.Origin):
  """Parquet files of both splits.

  Attributes:
    files: {split: names of its files}.
    has_official_names: paths are those of ILSVRC 2012.
  """

  files: Mapping[str, tuple[str, ...]]
  has_official_names: bool

  def describe(self) -> str:
    counts = " and ".join(
      f"{len(names):,} for {split}" for split, names in self.files.items()
    )
    names = "" if self.has_official_names else ", without ImageNet's file names"
    return f"parquet files in {self.folder}, {counts}{names}"

  def fingerprint(self) -> dict[str, object]:
    digest = hashlib.blake2b(digest_size=16)
    for name in itertools.chain(*self.files.values()):
      path = os.path.join(self.folder, name)
      with origin.name_errors(path), open(path, "rb") as file:
        size = os.path.getsize(path)
        file.seek(max(0, size - 2**16))  # the description of all columns
        digest.update(f"{name} {size} ".encode() + file.read())
    return {"parquet": digest.hexdigest()}

  def list_files(
    self, labels: Mapping[str, int], *, is_imagenet: bool
  ) -> origin.Listing:
    files = {}
    for split, names in self.files.items():
      files[split] = []
      for name in names:
        path = os.path.join(self.folder, name)
        with _name_errors(path):
          table = _open(path).read(columns=["label", "image.path"])
        classes = table["label"].to_pylist()
        paths = table["image"].combine_chunks().field("path").to_pylist()
        for row, (label, base) in enumerate(zip(classes, paths, strict=True)):
          if label is None or not 0 <= label < len(self.class_names):
            raise ValueError(
              f"row {row} of {path} has the label {label}, expected "
              f"0..{len(self.class_names) - 1}. Remove the row, or set --from."
            )
          base = os.path.basename(base or "")
          files[split].append(
            origin.Member(
              ilsvrc.to_official_name(base)
              if is_imagenet
              # Paths may be missing, or the same in two rows.
              else f"{name}:{row}{' ' if base else ''}{base}",
              labels[self.class_names[label]],
              name,
              row,
            )
          )
    return origin.Listing(files=files)

  def find_inputs(self, listing: origin.Listing) -> list[str]:
    del listing
    return [
      os.path.join(self.folder, name)
      for name in itertools.chain(*self.files.values())
    ]

  def locate(self, member: origin.Member) -> str:
    place = os.path.join(self.folder, member.file)
    return f"row {member.offset} of {place} ({member.name})"

  @contextlib.contextmanager
  def open(self, scratch: str) -> Iterator[Callable[[origin.Member], bytes]]:
    readers = {}

    def read(member: origin.Member) -> bytes:
      path = _find_unpacked(scratch, member.file)
      if not os.path.exists(path):
        return self._read_row(member)
      if path not in readers:
        readers[path] = array_record_module.ArrayRecordReader(
          path, options=_READER_OPTIONS
        )
      try:
        (picture,) = readers[path].read(member.offset, member.offset + 1)
      except RuntimeError as error:
        raise OSError(
          f"{path} cannot be read ({error}). Delete it, and repeat the command."
        ) from error
      return picture

    try:
      yield read
    finally:
      for reader in readers.values():
        reader.close()

  def _read_row(self, member: origin.Member) -> bytes:
    """Reads a row of a file that is not unpacked yet, to measure."""
    path = os.path.join(self.folder, member.file)
    return next(_read_pictures(path, first=member.offset))

  def count_unpacked_bytes(self, scratch: str) -> int:
    return sum(
      os.path.getsize(os.path.join(self.folder, name))
      for name in itertools.chain(*self.files.values())
      if not os.path.exists(_find_unpacked(scratch, name))
    )

  def unpack(self, scratch: str) -> None:
    for name in itertools.chain(*self.files.values()):
      path = _find_unpacked(scratch, name)
      if not os.path.exists(path):
        os.makedirs(scratch, exist_ok=True)
        with (
          atomic.replace(path) as partial,
          shards.open_writer(partial) as put,
        ):
          for picture in _read_pictures(os.path.join(self.folder, name)):
            put(picture)


def find(folder: str) -> Parquet | None:
  """Recognizes parquet files of both splits; None: there are none.

  Raises:
    ValueError: some are missing, or have other columns.
    ImportError: pyarrow is not installed.
  """
  for place in (folder, os.path.join(folder, "data")):
    if not os.path.isdir(place):
      continue
    with origin.name_errors(place):
      names = sorted(os.listdir(place))
    files = {
      split: tuple(name for name in names if _is_of(name, beginnings))
      for split, beginnings in _SPLITS.items()
    }
    if any(files.values()):
      for split, found in files.items():
        _check_complete(place, split, found)
      return _describe_set(place, files)
  return None


def _is_of(name: str, beginnings: tuple[str, ...]) -> bool:
  match = _FILE.fullmatch(name)
  return bool(match) and match[1] in beginnings


def _check_complete(place: str, split: str, names: tuple[str, ...]) -> None:
  """Refuses a split without files, or one that lacks some of its files."""
  example = f"{split}-00000-of-00008.parquet"
  if not names:
    raise ValueError(
      f"{place} has no parquet files for {split}, expected some, as {example}. "
      "Copy them there, or set --from."
    )
  matches = [_FILE.fullmatch(name) for name in names]
  counts = {match["count"] for match in matches}
  indices = [match["index"] for match in matches]
  count = counts.pop()
  if counts or (
    count is not None
    and [int(index) for index in indices] != [*range(int(count))]
  ):
    raise ValueError(
      f"{place} has {len(names):,} parquet files for {split}, from {names[0]} "
      f"to {names[-1]}, expected each one of a single set, as {example}, once. "
      "Copy the others there, or remove those of another set."
    )


def _describe_set(place: str, files: Mapping[str, tuple[str, ...]]) -> Parquet:
  """Finds the classes of a set from the first file, if it says them."""
  path = os.path.join(place, files["train"][0])
  with _name_errors(path):
    file = _open(path)
    _check_columns(path, file)
    paths = file.read(columns=["image.path"])["image"]
  first = (paths[0].as_py() if len(paths) else None) or {}
  name = ilsvrc.to_official_name(os.path.basename(first.get("path") or ""))
  is_official = ilsvrc.find_label("train", name) is not None
  if is_official:
    names = ilsvrc.class_names()
  else:
    names = _find_names(file) or _count_classes(place, files)
  return Parquet(
    folder=place, class_names=names, files=files, has_official_names=is_official
  )


def _check_columns(path: str, file: Any) -> None:
  schema = file.schema_arrow
  arrow = _import_pyarrow()
  image, label = (
    schema.field(name).type if name in schema.names else None
    for name in ("image", "label")
  )
  types = arrow.types
  is_struct = image is not None and types.is_struct(image)
  fields = {field.name: field.type for field in image} if is_struct else {}
  if (
    label is None
    or not types.is_integer(label)
    or "path" not in fields
    or "bytes" not in fields
    or not (
      types.is_binary(fields["bytes"]) or types.is_large_binary(fields["bytes"])
    )
  ):
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise ValueError(f"{path} has {found}, expected {_EXPECTED}. Set --from.")


def _find_names(file: Any) -> tuple[str, ...] | None:
  """Returns the class names that a hub writes beside the columns, if any."""
  metadata = file.schema_arrow.metadata or {}
  try:
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    names = features["label"]["names"]
  except (KeyError, TypeError, ValueError):
    return None
  if not isinstance(names, list):
    return None
  # In those of ImageNet, crane is a bird and a machine.
  names = [str(name).strip() for name in names]
  return tuple(
    f"{name} ({label})" if name in names[:label] else name
    for label, name in enumerate(names)
  )


def _count_classes(
  place: str, files: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
  """Names classes by their numbers, up to the highest label."""
  highest = 0
  for name in itertools.chain(*files.values()):
    path = os.path.join(place, name)
    with _name_errors(path):
      labels = _open(path).read(columns=["label"])["label"].to_pylist()
    highest = max([highest, *filter(None, labels)])
  return tuple(map(str, range(highest + 1)))


def _read_pictures(path: str, first: int = 0) -> Iterator[bytes]:
  """Reads the pictures of a file from a row on; a missing one is empty."""
  with _name_errors(path):
    file = _open(path)
    groups = [
      file.metadata.row_group(index).num_rows
      for index in range(file.num_row_groups)
    ]
    start = 0
    while start < len(groups) and first >= groups[start]:
      first -= groups[start]
      start += 1
    batches = file.iter_batches(
      batch_size=_ROWS,
      row_groups=range(start, len(groups)),
      columns=["image.bytes"],
    )
    for batch in batches:
      for picture in batch.column("image").field("bytes")[first:]:
        yield picture.as_py() or b""
      first = max(0, first - len(batch))


def _open(path: str) -> Any:
  """Opens a parquet file, for columns by name."""
  _import_pyarrow()
  from pyarrow import parquet

  # Read as needed: a group of rows may have gigabytes.
  return parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


@functools.cache
def _import_pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.types
  except ImportError as error:
    raise ImportError(
      "parquet files are read with pyarrow, which is not installed. Install "
      "it: pip install pyarrow"
    ) from error
  return pyarrow


@contextlib.contextmanager
def _name_errors(path: str) -> Iterator[None]:
  """Adds the path to errors of pyarrow and of the system."""
  arrow = _import_pyarrow()
  try:
    with origin.name_errors(path):
      yield
  except arrow.ArrowException as error:
    reason = str(error).partition("\n")[0]
    raise ValueError(
      f"{path} is no complete parquet file ({reason}). Copy it here again."
    ) from error


def _find_unpacked(scratch: str, name: str) -> str:
  return os.path.join(scratch, f"{name}.pictures")

"""Pictures in folders: one folder for each class, of any depth.

    train/CLASS/*  val/CLASS/*    as torchvision has ImageNet
    CLASS/*                       with a share of the pictures for validation
    Data/CLS-LOC/                 ILSVRC 2012 from Kaggle: train/CLASS/*, val/*,
                                  and LOC_val_solution.csv

Folders are listed once, without a look at the files themselves.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import dataclasses
import errno
import hashlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Mapping

from alexnet_jax.data import ilsvrc, origin

_TRAINING, _TEST = "train", "test"
_VALIDATION = ("val", "validation", "valid")
# Of Kaggle's archive: where its folders begin, and the validation classes.
_KAGGLE = os.path.join("Data", "CLS-LOC")
_SOLUTION = "LOC_val_solution.csv"
_SET_VALIDATION = (
  "Set --validation=0.1 to take a tenth of the pictures for validation"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders(origin.Origin):
  """Folders of classes.

  Attributes:
    training: the folder of the training classes, relative to `folder`.
    validation: likewise; None: a share of the training folder.
    share: of the pictures that are for validation; None: they have a folder.
    is_flat: the validation folder has no classes: the names of the files, or
      `solution`, say them.
    solution: path of Kaggle's file of the validation classes, or None.
  """

  training: str
  validation: str | None
  share: float | None
  is_flat: bool
  solution: str | None

  def describe(self) -> str:
    training, validation = (
      os.path.join(self.folder, name or "", "")
      for name in (self.training, self.validation)
    )
    if self.validation is None:
      rest = f", {self.share:.3g} of their pictures for validation"
    elif self.is_flat:
      classes = self.solution or "the names of its files"
      rest = f", and {validation} with classes from {classes}"
    else:
      rest = f" and {validation}"
    return f"{len(self.class_names):,} folders of classes in {training}{rest}"

  def fingerprint(self) -> dict[str, object]:
    names = "\n".join(self.class_names).encode(errors="surrogateescape")
    return {
      "from": os.path.abspath(self.folder),
      "validation": self.share if self.share is not None else self.validation,
      "classes": hashlib.blake2b(names, digest_size=8).hexdigest(),
    }

  def list_files(
    self, labels: Mapping[str, int], *, is_imagenet: bool
  ) -> origin.Listing:
    classes = [
      ("train", os.path.join(self.training, name), name)
      for name in self.class_names
    ]
    files: dict[str, list[origin.Member]] = {"train": [], "validation": []}
    _, others = _list_folder(os.path.join(self.folder, self.training))
    skipped = len(others)
    if self.is_flat:
      listed, skipped_here = self._list_flat(labels)
      files["validation"] += listed
      skipped += skipped_here
    elif self.validation is not None:
      names, others = self._list_validation()
      skipped += len(others)
      classes += [
        ("validation", os.path.join(self.validation, name), name)
        for name in names
      ]
    with concurrent.futures.ThreadPoolExecutor(origin.THREADS) as pool:
      found = pool.map(self._list_class, (place for _, place, _ in classes))
      for (split, place, name), (listed, count) in zip(
        classes, found, strict=True
      ):
        if not listed and split == "train":
          raise ValueError(
            f"{os.path.join(self.folder, place)} has no pictures, expected "
            "some: a folder is a class. Remove it, or set --from."
          )
        skipped += count
        root = self.training if split == "train" else self.validation
        files[split] += self._make_members(
          listed, labels[name], root=root, is_imagenet=is_imagenet
        )
    if self.share is not None:
      drawn = {False: [], True: []}
      for member in files["train"]:
        drawn[_hash(member.name) < self.share].append(member)
      files = {"train": drawn[False], "validation": drawn[True]}
    return origin.Listing(files=files, skipped=skipped)

  def _list_validation(self) -> tuple[list[str], list[str]]:
    """Lists the validation classes, and what is no folder."""
    path = os.path.join(self.folder, self.validation)
    names, others = _list_folder(path)
    if unknown := sorted(set(names) - set(self.class_names)):
      raise ValueError(
        f"{os.path.join(path, unknown[0])} is a class without training "
        f"pictures, expected a folder of that name in "
        f"{os.path.join(self.folder, self.training)}. Add it, or remove this "
        "one."
      )
    return names, others

  def _list_flat(
    self, labels: Mapping[str, int]
  ) -> tuple[list[origin.Member], int]:
    """Lists validation pictures that are in one folder."""
    path = os.path.join(self.folder, self.validation)
    with origin.name_errors(path):
      names = os.listdir(path)
    classes = _read_solution(self.solution) if self.solution else {}
    members = []
    for name in names:
      if origin.is_of_system(name):
        continue
      if self.solution:
        class_name = classes.get(os.path.splitext(name)[0])
      else:
        official = ilsvrc.find_label("validation", name)
        class_name = (
          None if official is None else ilsvrc.class_names()[official]
        )
      label = labels.get(class_name)
      if label is None:
        expected = (
          f"a file with one of the training classes in {self.solution}"
          if self.solution
          else f"{ilsvrc.EXPECTED['validation']}, of the training classes"
        )
        raise ValueError(
          f"the class of {os.path.join(path, name)} is unknown, expected "
          f"{expected}. Remove it, or put it into a folder of its class."
        )
      members.append(origin.Member(name, label, self.validation))
    return members, len(names) - len(members)

  def _list_class(self, place: str) -> tuple[list[tuple[str, str]], int]:
    """Lists the files of a class: [(folder, name)], and how many it skips."""
    listed: list[tuple[str, str]] = []
    skipped = 0
    # The folders above each one tell a link that leads back to one of them.
    with origin.name_errors(os.path.join(self.folder, place)):
      waiting = [(place, self._find_above(place))]
    while waiting:
      folder, above = waiting.pop()
      path = os.path.join(self.folder, folder)
      with origin.name_errors(path):
        found = os.stat(path)
        identity = found.st_dev, found.st_ino
        if identity in above:
          raise ValueError(
            f"{path} is a link to a folder that it is in, expected one "
            "elsewhere. Remove it."
          )
        with os.scandir(path) as entries:
          for entry in entries:
            if origin.is_of_system(entry.name):
              skipped += 1
            elif origin.is_folder(entry):
              inner = os.path.join(folder, entry.name)
              waiting.append((inner, above | {identity}))
            else:
              listed.append((folder, entry.name))
    return listed, skipped

  def _find_above(self, place: str) -> frozenset[tuple[int, int]]:
    """Identifies the folders above a class, which may be a link itself."""
    root = os.path.realpath(os.path.join(self.folder, self.training))
    parents = pathlib.Path(self.folder, place).resolve().parents
    identities = set()
    for path in (root, *pathlib.Path(root).parents, *parents):
      found = os.stat(path)
      identities.add((found.st_dev, found.st_ino))
    return frozenset(identities)

  def _make_members(
    self,
    listed: list[tuple[str, str]],
    label: int,
    *,
    root: str,
    is_imagenet: bool,
  ) -> Iterator[origin.Member]:
    for folder, name in listed:
      if is_imagenet:
        yield origin.Member(name, label, folder)
      else:
        inner = folder.removeprefix(f"{root}/")
        yield origin.Member(f"{inner}/{name}", label, root)

  def find_inputs(self, listing: origin.Listing) -> list[str]:
    folders = {
      os.path.dirname(os.path.join(member.file, member.name))
      for members in listing.files.values()
      for member in members
    }
    return [os.path.join(self.folder, folder) for folder in sorted(folders)]

  @property
  def listed(self) -> tuple[str, ...]:
    names = [self.training]
    if self.validation is not None:
      names.append(self.validation)
    return tuple(os.path.join(self.folder, name) for name in names)

  def locate(self, member: origin.Member) -> str:
    return os.path.join(self.folder, member.file, member.name)

  @contextlib.contextmanager
  def open(self, scratch: str) -> Iterator[Callable[[origin.Member], bytes]]:
    del scratch
    yield lambda member: _read_file(self.locate(member))


def find(folder: str, *, share: float | None) -> Folders | None:
  """Recognizes folders of classes; None: it has no folders.

  Args:
    share: of the pictures to take for validation, 0 to 1; None: none.

  Raises:
    ValueError: there are no validation pictures, or two kinds of them.
  """
  root, solution = _find_kaggle(folder) or (folder, None)
  names, _ = _list_folder(root)
  if not names:
    return None
  training = _TRAINING if _TRAINING in names else ""
  validation = [name for name in _VALIDATION if training and name in names]
  if len(validation) > 1:
    raise ValueError(
      f"{root} has the folders {' and '.join(validation)}, expected one with "
      "validation pictures. Remove the other."
    )
  if validation and share is not None:
    raise ValueError(
      f"--validation is {share:g}, but there are validation pictures in "
      f"{os.path.join(root, validation[0])}. Leave --validation out."
    )
  if not validation and share is None:
    raise ValueError(
      f"{os.path.join(root, training)} has folders of classes, but there are "
      f"no validation pictures: no folder {' or '.join(_VALIDATION)} beside a "
      f"folder {_TRAINING} in {root}. {_SET_VALIDATION}, or set --from."
    )
  classes = _list_folder(os.path.join(root, training))[0] if training else names
  if training and not validation:
    _check_alone(root, names)
  if not classes:
    raise ValueError(
      f"{os.path.join(root, training)} has no folders, expected one for each "
      "class. Set --from."
    )
  is_flat = (
    bool(validation)
    and not (_list_folder(os.path.join(root, validation[0]))[0])
  )
  return Folders(
    folder=root,
    class_names=tuple(sorted(classes)),
    training=training,
    validation=validation[0] if validation else None,
    share=share,
    is_flat=is_flat,
    solution=solution if is_flat else None,
  )


def _check_alone(root: str, names: list[str]) -> None:
  """Refuses folders beside the training folder, which would be left out.

  A class may be called train, too.
  """
  others = sorted(set(names) - {_TRAINING, _TEST})
  if others:
    raise ValueError(
      f"{root} has the folders {_TRAINING} and {others[0]}, expected classes "
      f"either in {_TRAINING} or beside each other. If {_TRAINING} is a class, "
      f"rename it; else remove {others[0]}, or set --from to "
      f"{os.path.join(root, _TRAINING)}."
    )


def _find_kaggle(folder: str) -> tuple[str, str | None] | None:
  """Finds the folders of Kaggle's archive, and its list of classes."""
  for base in (folder, os.path.join(folder, "ILSVRC")):
    root = os.path.join(base, _KAGGLE)
    if os.path.isdir(os.path.join(root, _TRAINING)):
      # Beside ILSVRC in the archive.
      places = (base, folder, os.path.dirname(os.path.abspath(folder)), root)
      paths = [os.path.join(place, _SOLUTION) for place in places]
      return root, next(filter(os.path.isfile, paths), None)
  return None


def _list_folder(path: str) -> tuple[list[str], list[str]]:
  """Lists the folders in a folder, and the rest; hidden ones are rest."""
  folders, others = [], []
  with origin.name_errors(path), os.scandir(path) as entries:
    for entry in entries:
      is_class = origin.is_folder(entry) and not origin.is_of_system(entry.name)
      (folders if is_class else others).append(entry.name)
  return folders, others


def _read_solution(path: str) -> dict[str, str]:
  """Reads {name of a picture without ending: WordNet id} from Kaggle's file."""
  try:
    # Programs that edit tables write a mark of the byte order.
    with (
      origin.name_errors(path),
      open(path, newline="", encoding="utf-8-sig") as file,
    ):
      rows = list(csv.reader(file))
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f"{path} is no CSV file in UTF-8 ({error}). Copy the file here again."
    ) from error
  expected = ["ImageId", "PredictionString"]
  if not rows or rows[0] != expected:
    raise ValueError(
      f"{path} begins with {','.join(rows[0]) if rows else ''!r}, expected "
      f"{','.join(expected)}. Copy the file here again."
    )
  classes = {}
  for line, row in enumerate(rows[1:], 2):
    words = row[1].split() if len(row) == 2 else []
    if not words:
      raise ValueError(
        f"line {line} of {path} is {','.join(row)!r}, expected the name of a "
        "picture, a class and boxes. Copy the file here again."
      )
    classes[row[0]] = words[0]
  return classes


def _hash(name: str) -> float:
  """Returns a number in [0, 1) that follows from a name alone."""
  # Another one than that of the order.
  digest = hashlib.blake2b(
    os.fsencode(name), digest_size=8, person=b"validation"
  ).digest()
  return int.from_bytes(digest) / 2**64


def _read_file(path: str) -> bytes:
  """Reads a file.

  Raises:
    ValueError: it is no file, or a link to nothing.
    OSError: it cannot be read now.
  """
  try:
    # Opening a pipe would wait for one who writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError as error:
    if os.path.islink(path):
      raise ValueError("it is a link to nothing") from error
    raise OSError(
      f"{path} is gone since it was listed. Put it back, and repeat the "
      "command."
    ) from error
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise ValueError("it is a link to itself") from error
    with origin.name_errors(path):
      raise error
  with os.fdopen(handle, "rb") as file, origin.name_errors(path):
    if not stat.S_ISREG(os.fstat(handle).st_mode):
      raise ValueError("it is no file")
    return file.read()

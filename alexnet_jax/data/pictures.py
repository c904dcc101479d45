"""Pictures of a user, of any size and kind, as squares of pixels.

The records of a set go through `records.py`. A rotation that a camera has noted
in a file (EXIF) is applied here, as viewers do. It is not applied when records
are read: the published numbers are those of pictures as they are stored.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax.data import decode, origin

_EXPECTED = (
  "expected an array u8[h, w, 3], u8[h, w] or u8[N, h, w, 3], a file, a "
  "folder, or a list of these"
)
# Problems that an error quotes.
_QUOTED = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
  """Pictures that could be read, and why others could not.

  Attributes:
    pixels: u8[N, side, side, 3], RGB, N >= 1.
    names: of each picture: its path as given, or `picture 0` for an array that
      comes first.
    problems: a line for each file that could not be read: its name, the reason.
  """

  pixels: np.ndarray
  names: tuple[str, ...]
  problems: tuple[str, ...] = ()


def read_pictures(images: Any, *, side: int) -> Pictures:
  """Reads pictures, and brings them to squares as `decode.to_square` does.

  All of them are in memory at once: 150 kB for each one of 224 pixels.

  Args:
    images: an array u8[h, w, 3] (RGB), u8[h, w] (gray) or u8[N, h, w, 3]; the
      path of a file; a folder, which stands for its files by name, without
      hidden ones and folders inside; or a list or another iterable of these.
    side: of the squares, in pixels.

  Raises:
    TypeError: something is none of these, or an array has another type.
    ValueError: an array has another shape, or no picture can be read.
  """
  found = list(_find_each(images))
  names, squares, problems = [], [], []
  # Pillow warns of odd metadata without the name of the file.
  with warnings.catch_warnings():
    decode.ignore_warnings()
    for number, one in enumerate(found):
      if isinstance(one, np.ndarray):
        names.append(f"picture {number}")
        squares.append(_read_array(one, side, name=names[-1]))
        continue
      try:
        squares.append(_read_file(one, side))
        names.append(one)
      except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.append(f"{one!r} cannot be read: {reason}")
  if not squares:
    raise ValueError(_describe_nothing(problems))
  return Pictures(
    pixels=np.stack(squares), names=tuple(names), problems=tuple(problems)
  )


def _find_each(images: Any) -> Iterator[str | np.ndarray]:
  """Yields the path or the array of each picture.

  Raises:
    TypeError: something is neither.
  """
  if isinstance(images, str | os.PathLike):
    yield from _find_files(os.fsdecode(images))
  elif hasattr(images, "__array__") or hasattr(images, "__array_interface__"):
    array = np.asarray(images)
    yield from array if array.ndim == 4 else [array]
  elif isinstance(images, Iterable) and not isinstance(images, bytes | Mapping):
    for one in images:
      yield from _find_each(one)
  else:
    raise TypeError(f"{reprlib.repr(images)} is no picture, {_EXPECTED}.")


def _find_files(path: str) -> Iterator[str]:
  """Yields the files of a folder, or the path itself if there are none."""
  try:
    with os.scandir(path) as entries:
      files = sorted(
        entry.name for entry in entries if not origin.is_folder(entry)
      )
  except OSError:  # no folder, or none that can be read: `_read_file` says why
    files = []
  files = [name for name in files if not origin.is_of_system(name)]
  yield from [os.path.join(path, name) for name in files] or [path]


def _read_array(array: np.ndarray, side: int, *, name: str) -> np.ndarray:
  """Returns u8[side, side, 3]."""
  if array.dtype != np.uint8:
    raise TypeError(
      f"{name} is an array of {array.dtype}, expected uint8, 0..255. Convert "
      "values of 0..1 by np.rint(255 * x).astype(np.uint8)."
    )
  if (array.ndim != 2 and array.shape[2:] != (3,)) or 0 in array.shape:
    raise ValueError(
      f"{name} has the shape {array.shape}, expected (h, w, 3), (h, w) or, for "
      "several pictures, (N, h, w, 3), with at least one pixel."
    )
  picture = Image.fromarray(np.ascontiguousarray(array))
  return np.asarray(decode.to_square(picture, side))


def _read_file(path: str, side: int) -> np.ndarray:
  """Returns u8[side, side, 3].

  Raises:
    OSError, ValueError: the reason why it cannot be read.
  """
  if os.path.isdir(path):
    os.listdir(path)  # raises if it cannot be read
    raise ValueError("it is a folder without files")
  if os.path.exists(path) and not os.path.isfile(path):
    raise ValueError("it is no file")  # a pipe, from which reading may not end
  with open(path, "rb") as file, decode.describe_errors():
    picture = decode.open_picture(file)
    decode.rotate(picture)
    return np.asarray(decode.to_square(picture, side))


def _describe_nothing(problems: list[str]) -> str:
  """Says why there are no pictures."""
  if not problems:
    return f"there are no pictures, {_EXPECTED}."
  more = len(problems) - _QUOTED
  return (
    f"no picture can be read: {'; '.join(problems[:_QUOTED])}"
    f"{f'; and {more:,} more' if more > 0 else ''}. Give at least one picture "
    f"in {', '.join(decode.FORMATS)}."
  )

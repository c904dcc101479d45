"""A set of one's own pictures, which TFDS opens by name without this code."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

import tensorflow_datasets as tfds

from alexnet_jax.data import shards

_NAME = re.compile("[a-z][a-z0-9_]*")
_EXPECTED = "a letter a to z, then a to z, 0 to 9 and _"


class OwnSet(
  tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True
):
  """TFDS builder of a set to be prepared; it has no configs.

  Args:
    name: see `check_name`.
    data_dir: folder of TFDS's sets; None: TFDS's default.
    encoding: jpeg or raw.
    side: of the squares, pixels.
    class_names: in the order of the labels.

  Raises:
    ValueError: TFDS cannot store the class names.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def __init__(
    self,
    *,
    name: str,
    data_dir: str | None,
    encoding: str,
    side: int,
    class_names: Sequence[str],
  ):
    _check_class_names(class_names)
    self.name = name
    self._features = shards.make_features(
      encoding,
      side=side,
      label=tfds.features.ClassLabel(names=list(class_names)),
    )
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{self.name}, prepared by alexnet_jax.",
      features=self._features,
      supervised_keys=("image", "label"),
      metadata=tfds.core.MetadataDict(),
    )

  def _download_and_prepare(self, dl_manager, download_config=None):
    raise NotImplementedError("a set of one's own has no download")


def make_name(folder: str) -> str:
  """Makes the name of a set from that of a folder.

  Letters lose their accents, and what is no letter or digit becomes _.

  Raises:
    ValueError: nothing is left that can begin a name.
  """
  base = os.path.basename(os.path.abspath(folder))
  plain = unicodedata.normalize("NFKD", base).encode("ascii", "ignore").decode()
  name = re.sub("[^a-z0-9]+", "_", plain.lower()).strip("_")
  if not _NAME.fullmatch(name):
    raise ValueError(
      f"the folder's name {base!r} makes no name of a set, expected "
      f"{_EXPECTED}. Set --name."
    )
  return name


def check_name(name: str) -> None:
  """Refuses a name that TFDS would not find, or would write in another way."""
  if not _NAME.fullmatch(name):
    raise ValueError(f"--name is {name!r}, expected {_EXPECTED}. Set --name.")


def _check_class_names(names: Sequence[str]) -> None:
  """Refuses names that TFDS's file of names, with one a line, would change."""
  stripped = set()
  for name in names:
    is_text = name.isprintable() and name == name.strip() != ""
    if not is_text or name in stripped:
      raise ValueError(
        f"the class {name!r} cannot be stored, expected a name of its own, of "
        "printable characters, without spaces around it. Rename its folder."
      )
    stripped.add(name)

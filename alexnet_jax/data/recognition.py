"""Recognizes what a folder holds, and lists it as the files of a set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from alexnet_jax.data import folders, ilsvrc, origin, parquet, tars


def find_origin(
  folder: str, *, subset: bool, validation: float | None
) -> origin.Origin:
  """Recognizes what a folder holds: tars, parquet files, folders of classes.

  Args:
    subset: accept ILSVRC with fewer pictures than it has.
    validation: share of the pictures to take for validation, where they are not
      apart already, between 0 and 1; None: none.

  Raises:
    OSError: there is no such folder, or it cannot be read.
    ValueError: it holds nothing of the kind, or not all of it.
    ImportError: it needs pyarrow, which is not installed.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f"there is no folder {folder!r}, expected one with pictures. Set --from."
    )
  found = tars.find(folder, subset=subset) or parquet.find(folder)
  if found is None:
    found = folders.find(folder, share=validation)
  elif validation is not None:
    raise ValueError(
      f"--validation is {validation:g}, but {found.describe()} have pictures "
      "for validation. Leave --validation out."
    )
  if found is None:
    raise ValueError(
      f"{folder} holds no pictures in a form that is known, expected "
      f"{' and '.join(tars.TARS.values())}, the folders train/CLASS and "
      "val/CLASS, folders CLASS, Kaggle's Data/CLS-LOC, or "
      "train-*.parquet and validation-*.parquet. Set --from."
    )
  return found


def list_files(
  found: origin.Origin,
  class_names: Sequence[str],
  *,
  is_imagenet: bool,
  subset: bool,
) -> origin.Listing:
  """Lists the files in the order of the records, and checks them.

  Args:
    found: where the files are.
    class_names: of the set, in the order of the labels.
    is_imagenet: the set is ILSVRC 2012.
    subset: accept ILSVRC with fewer pictures than it has.

  Raises:
    OSError: a file or a folder cannot be read.
    ValueError: a split is empty; two files have the same name; or, for
      ImageNet, one has another name than in the official tars, or some are
      missing.
  """
  labels = {name: label for label, name in enumerate(class_names)}
  listing = found.list_files(labels, is_imagenet=is_imagenet)
  for split, members in listing.files.items():
    if not members:
      raise ValueError(
        f"there are no pictures for {split} in {found.folder}, expected some. "
        "Set --validation or --from."
      )
    if is_imagenet:
      _check_official(found, split, members, subset=subset)
    known = {}
    for member in members:
      if other := known.get(member.name):
        raise ValueError(
          f"{found.locate(other)} and {found.locate(member)} have the same "
          f"name, {member.name!r}, expected two. Remove one, or set --from."
        )
      known[member.name] = member
  return listing.shuffle()


def _check_official(
  found: origin.Origin,
  split: str,
  members: list[origin.Member],
  *,
  subset: bool,
) -> None:
  """Refuses files that are not those of ILSVRC 2012."""
  for member in members:
    if ilsvrc.find_label(split, member.name) != member.label:
      raise ValueError(
        f"{found.locate(member)} is in the class "
        f"{ilsvrc.class_names()[member.label]}, expected there: "
        f"{ilsvrc.EXPECTED[split]}, as in the official tars. Set --name to "
        "prepare a set of your own from it."
      )
  expected = ilsvrc.IMAGES[split]
  if not subset and len(members) != expected:
    raise ValueError(
      f"there are {len(members):,} pictures for {split} in "
      f"{found.describe()}, expected {expected:,}. Complete them, set --subset "
      "to prepare these, or --name for a set of your own."
    )

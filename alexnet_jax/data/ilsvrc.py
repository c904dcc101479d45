"""ILSVRC 2012: its classes, and what the names of its files say."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds

# The set that is made of it.
SET = "imagenet256"
# Pictures in the official files.
IMAGES = {"train": 1_281_167, "validation": 50_000}
# What a file of a split is called.
EXPECTED = {
  "train": "pictures as n01440764_18.JPEG, of one of the 1,000 classes",
  "validation": "pictures ILSVRC2012_val_00000001.JPEG to 00050000",
}

_TRAINING = re.compile(r"(n\d{8})_.+\.JPEG", re.DOTALL)
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# In sets of hubs, the class stands at the end.
_WITH_CLASS = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})_n\d{8}\.JPEG")


@functools.cache
def class_names() -> tuple[str, ...]:
  """Returns the WordNet ids, in order, from TFDS."""
  path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
  with open(os.fspath(path)) as file:
    return tuple(file.read().split())


@functools.cache
def labels() -> dict[str, int]:
  """Returns {WordNet id: label}."""
  return {name: label for label, name in enumerate(class_names())}


@functools.cache
def validation_labels() -> tuple[str, ...]:
  """Returns the WordNet ids of validation images 1 to 50,000, from TFDS."""
  path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
  with open(os.fspath(path)) as file:
    return tuple(file.read().split())


def are_classes(names: Sequence[str], *, subset: bool) -> bool:
  """Tests for the 1,000 classes; with `subset`, for some of them."""
  return bool(names) and (
    labels().keys() >= set(names) if subset else labels().keys() == set(names)
  )


def find_label(split: str, name: str) -> int | None:
  """Returns the label that an official name stands for; None for another."""
  if split == "train":
    match = _TRAINING.fullmatch(name)
    return labels().get(match[1]) if match else None
  match = _VALIDATION.fullmatch(name)
  if match and 1 <= int(match[1]) <= len(validation_labels()):
    return labels()[validation_labels()[int(match[1]) - 1]]
  return None


def to_official_name(name: str) -> str:
  """Removes the class that hubs append: n01440764_18_n01440764.JPEG."""
  match = _WITH_CLASS.fullmatch(name)
  return f"{match[1]}.JPEG" if match else name

"""Checks an imported run against pictures with labels, or given outputs."""

from __future__ import annotations

import os
import pathlib

import jax
import numpy as np
from flax import nnx

from alexnet_jax.convert import archive
from alexnet_jax.data import pictures
from alexnet_jax.network import model
from alexnet_jax.training import loaded_run

# Largest difference from a reference, as a fraction of its range: far above
# that of sums in another order (1e-6), and below that of one wrong mean.
TOLERANCE = 1e-3
# Network inputs that are computed at once.
_BATCH = 32
_OUTPUTS = ("logits", "probabilities")


def find_labels(folder: str, class_names: tuple[str, ...]) -> dict[str, int]:
  """Finds the folders of classes, by name or by number: {path: label}.

  Raises:
    ValueError: a folder is called like no class, or there is none.
    OSError: it cannot be read.
  """
  labels = {name: label for label, name in enumerate(class_names)}
  found = {}
  try:
    entries = sorted(pathlib.Path(folder).iterdir())
  except OSError as error:
    raise OSError(
      f"the folder {folder!r} cannot be read: {error.strerror}. Set --check."
    ) from error
  for entry in entries:
    if not entry.is_dir() or entry.name.startswith("."):
      continue
    name = entry.name
    is_number = name.isascii() and name.isdecimal() and len(name) < 8
    if name not in labels and not (is_number and int(name) < len(labels)):
      raise ValueError(
        f"the folder {str(entry)!r} is called like no class, expected one of "
        f"{', '.join(class_names[:3])}, ... or a number below {len(labels):,}. "
        "Set --check, or --class_names."
      )
    found[str(entry)] = labels[name] if name in labels else int(name)
  if not found:
    raise ValueError(
      f"the folder {folder!r} has no folders of classes, expected one for each "
      "class, with its pictures. Set --check."
    )
  return found


def check_pictures(
  run: loaded_run.LoadedRun, labels: dict[str, int]
) -> list[str]:
  """Computes the errors of a run on folders of pictures.

  Args:
    labels: from `find_labels`.

  Returns:
    A line with the errors, and one on each picture that cannot be read.

  Raises:
    ValueError: no picture of a folder can be read.
    FloatingPointError: an output is not finite.
  """
  ranks, problems = [], []
  for folder, label in labels.items():
    found = pictures.read_pictures(folder, side=run.config.data.stored_size)
    problems += found.problems
    outputs = run.logits(found)
    ranks.append((outputs > outputs[:, label : label + 1]).sum(axis=1))
  ranks = np.concatenate(ranks)
  tops = sorted({1, min(5, len(run.class_names))})
  errors = ", ".join(f"top-{top} {np.mean(ranks >= top):.2%}" for top in tops)
  chance = 1 - 1 / len(run.class_names)
  return [
    *problems,
    f"errors on {len(ranks):,} pictures of {len(labels):,} classes in "
    f"{os.path.dirname(next(iter(labels)))}: {errors} (by chance top-1 "
    f"{chance:.2%})",
  ]


def read_reference(path: str) -> dict[str, np.ndarray]:
  """Reads images and the outputs that belong to them.

  Returns:
    "images", u8[N, h, w, 3] pictures or f32[N, side, side, 3] inputs of the
    network; and "logits" or "probabilities", [N, classes].

  Raises:
    ValueError: it has other arrays.
    OSError: it cannot be read.
  """
  contents = archive.read_file(path, flag="reference")
  try:
    arrays = archive.read_npz(archive.open_zip(contents))
  except ValueError as error:
    raise ValueError(
      f"the file {path!r} is no .npz of arrays: {error}. Set --reference."
    ) from error
  images = arrays.get("images")
  outputs = [name for name in _OUTPUTS if name in arrays]
  if images is None or len(outputs) != 1:
    raise ValueError(
      f"the file {path!r} has {', '.join(arrays) or 'no arrays'}, expected "
      "images and either logits or probabilities. Set --reference."
    )
  is_image = images.ndim == 4 and images.shape[-1] == 3 and len(images)
  expected = arrays[outputs[0]]
  if (
    not is_image
    or images.dtype not in (np.uint8, np.float32)
    or expected.ndim != 2
    or expected.dtype.kind != "f"
    or len(expected) != len(images)
    or not np.isfinite(expected).all()
  ):
    raise ValueError(
      f"the file {path!r} has images {images.dtype.name}{images.shape} and "
      f"{outputs[0]} {expected.dtype.name}{expected.shape}, expected "
      "uint8 (N, h, w, 3) or float32 (N, side, side, 3), and finite (N, "
      "classes). Set --reference."
    )
  return {"images": images, outputs[0]: expected}


def check_reference(
  run: loaded_run.LoadedRun, arrays: dict[str, np.ndarray]
) -> tuple[list[str], bool]:
  """Compares the outputs of a run with those of another program.

  Args:
    arrays: from `read_reference`.

  Returns:
    A line on the largest difference, and whether it is small enough.

  Raises:
    ValueError: they are of other images or classes.
  """
  images = arrays["images"]
  (kind,) = (name for name in _OUTPUTS if name in arrays)
  expected, side = arrays[kind], run.network.image_size
  if expected.shape[1] != len(run.class_names):
    raise ValueError(
      f"the reference has {expected.shape[1]:,} classes, but the network has "
      f"{len(run.class_names):,}. Set --reference."
    )
  if images.dtype == np.uint8:
    found = run.logits(images)
  elif images.shape[1:] == (side, side, 3):
    found = _run_network(run, images)
  else:
    raise ValueError(
      f"the reference has network inputs of {images.shape[1:]}, expected "
      f"{(side, side, 3)}. Set --reference."
    )
  if kind == "probabilities":
    found = np.asarray(jax.nn.softmax(found, axis=1))
  spread = float(expected.max() - expected.min())
  difference = float(np.abs(found - expected).max())
  share = difference / spread if spread else np.inf
  return [
    f"{kind} of {len(images):,} images: the largest difference from the "
    f"reference is {difference:.3g}, {share:.2g} of its range of {spread:.3g}"
  ], share <= TOLERANCE


def _run_network(run: loaded_run.LoadedRun, inputs: np.ndarray) -> np.ndarray:
  """Computes the logits of network inputs on one device: f32[N, classes]."""
  graphdef = model.make_graphdef(run.network)
  compute = jax.jit(lambda tree, x: nnx.merge(graphdef, tree)(x))
  parameters = jax.device_put(run.parameters)
  batches = np.split(inputs, range(_BATCH, len(inputs), _BATCH))
  return np.concatenate(
    [np.asarray(compute(parameters, batch)) for batch in batches]
  )

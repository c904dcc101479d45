"""Records whose image says their number, in the place of a real set.

As a program, one of several processes that share a mesh: starts at every step
once, and prints the rows that its devices hold of the batches from there on.

    python -m tests.numbered LAYOUT AXIS=SIZE,... PORT PROCESSES PROCESS STEPS
"""

import dataclasses
import sys

import jax
import numpy as np

from alexnet_jax.data import pipeline, records
from alexnet_jax.partition import catalog, layout, mesh, specs

COUNT = 50  # records; three epochs and more are 10 batches
BATCH_SIZE = 16
SEED = 3


class Numbered(records.Records):
  """Images of 2 x 2 pixels; the label is the number."""

  def fill(self, indices, images, labels):
    images[...] = np.asarray(indices, np.int64).reshape(-1, 1, 1, 1) // 256
    images[:, 0, 0, 0] = np.asarray(indices) % 256
    labels[:] = indices
    return [row for row, index in enumerate(indices) if index % 10 == 0]


def make_records(count: int = COUNT) -> Numbered:
  return Numbered(
    source=range(count),
    image_key="image",
    label_key="label",
    num_classes=count,
    stored_size=2,
  )


def make_shardings(split: layout.Layout):
  made = mesh.make_mesh(split)
  spec = jax.P(tuple(split.conv.batch) or None)
  return specs.to_shardings(made, (spec, spec))


def read_numbers(images: np.ndarray) -> np.ndarray:
  images = np.asarray(images, np.int64)
  return images[:, 1, 1, 0] * 256 + images[:, 0, 0, 0]


def train_batches(split: layout.Layout, records=None, **options):
  options = {"first_step": 0, "threads": 2} | options
  return pipeline.train_batches(
    records or make_records(),
    batch_size=BATCH_SIZE,
    seed=SEED,
    shardings=make_shardings(split),
    batches_ahead=2,
    **options,
  )


def main(name, sizes, port, processes, process, steps):
  sizes = dict(part.split("=") for part in sizes.split(","))
  sizes = {axis: int(size) for axis, size in sizes.items()}
  split = dataclasses.replace(catalog.find(name), mesh=sizes)
  mesh.simulate_devices(split.devices // int(processes), only_cpu=True)
  if int(processes) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      f"localhost:{port}", int(processes), int(process)
    )
  for first in range(int(steps)):
    batches = train_batches(split, first_step=first, num_steps=int(steps))
    for step, batch in enumerate(batches, start=first):
      arrays = batch.images, batch.labels
      shards = (array.addressable_shards for array in arrays)
      for images, labels in zip(*shards, strict=True):
        (rows,) = labels.index
        numbers = read_numbers(images.data)
        assert (numbers == np.asarray(labels.data)).all()
        print("rows", first, step, rows.indices(BATCH_SIZE)[0], *numbers)


if __name__ == "__main__":
  main(*sys.argv[1:])

"""What a config makes of the images, and of epochs."""

from __future__ import annotations

import dataclasses
import math

import ml_collections
import numpy as np

from alexnet_jax.data import augment, sets
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.network import wiring

# Where the augmentation's numbers come from.
STATISTICS = ("dataset", "published")
# Devices count steps in int32; what is to happen later never does.
LAST_STEP = 2**31 - 1


def to_steps(
  config: ml_collections.ConfigDict, epochs: float, num_images: int
) -> int:
  return math.ceil(epochs * num_images / config.batch_size)


def find_order_seed(config: ml_collections.ConfigDict) -> int:
  """The seed of the order of the training images."""
  return config.seed if config.data.seed is None else config.data.seed


def find_statistics(
  config: ml_collections.ConfigDict, builder
) -> statistics_lib.Statistics:
  """Of the training split, or those of 2012, as a config has it."""
  if config.augment.statistics == "published":
    return statistics_lib.PUBLISHED
  found = sets.find_statistics(builder)
  if found is None:
    raise ValueError(
      f"dataset {builder.name!r} keeps no statistics of its pixels; set "
      "config.augment.statistics=published and config.augment.mean=(R, G, B) "
      "to those of its training split."
    )
  return found


def make_augmentation(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  statistics: statistics_lib.Statistics | None,
  num_images: int,
) -> augment.Augment:
  """The augmentation; without statistics, with some of the same sizes.

  Args:
    config: the config.
    network: for the side of its images.
    statistics: of the training split; None: zeros and those of 2012.
    num_images: in the training split, for when the colour noise ends.
  """
  fields = config.augment.to_dict()
  del fields["statistics"]  # of these the caller has some
  mean = fields.pop("mean")
  until = fields.pop("colour_noise_until_epoch")
  side = config.data.stored_size
  if statistics is None:
    statistics = dataclasses.replace(
      statistics_lib.PUBLISHED,
      mean_image=np.zeros((side, side, 3), np.float32),
    )
  if mean is not None:
    if fields["mean_from"] != "channel":
      raise ValueError(
        f"augment.mean is {mean}, but augment.mean_from is "
        f"{fields['mean_from']!r}, which does not read it, expected None. Set "
        "config.augment.mean_from=channel, or leave config.augment.mean unset."
      )
    statistics = dataclasses.replace(statistics, mean=mean)
  return augment.Augment(
    stored_size=side,
    image_size=network.image_size,
    statistics=statistics,
    colour_noise_steps=(
      None
      if until is None
      else min(to_steps(config, until, num_images), LAST_STEP)
    ),
    **fields,
  )

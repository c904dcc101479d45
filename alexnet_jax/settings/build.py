"""What a config makes of the images, and of epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import ml_collections
import numpy as np
import optax

from alexnet_jax.data import augment, sets
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.network import wiring
from alexnet_jax.optim import optimizer, schedules

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
    num_images: in the training split, for when the color noise ends.
  """
  fields = config.augment.to_dict()
  del fields["statistics"]  # of these the caller has some
  mean = fields.pop("mean")
  until = fields.pop("color_noise_until_epoch")
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
    color_noise_steps=(
      None
      if until is None
      else min(to_steps(config, until, num_images), LAST_STEP)
    ),
    **fields,
  )


def to_updates(
  config: ml_collections.ConfigDict, epochs: float, num_images: int
) -> int:
  """As `build.to_steps`, but one for each `grad_accumulation_steps` steps."""
  images = config.batch_size * config.grad_accumulation_steps
  return min(math.ceil(epochs * num_images / images), LAST_STEP)


def make_schedules(
  config: ml_collections.ConfigDict, num_images: int
) -> tuple[optax.Schedule, optax.Schedule]:
  """Learning rates of the kernels and of the biases, by update.

  Both are of one kind, but that the biases drop at epochs of their own, by
  steps, where the kernels do so by steps or exponentially: as in cuda-convnet.
  """
  rule = config.optimizer
  of_biases = "steps" if rule.schedule == "exponential" else rule.schedule
  kernels, biases = (
    _make_schedule(config, num_images, name, rate, drop_epochs)
    for name, rate, drop_epochs in (
      (rule.schedule, rule.learning_rate, rule.drop_epochs),
      (
        of_biases,
        rule.learning_rate * rule.bias_lr_multiplier,
        rule.bias_drop_epochs,
      ),
    )
  )
  return kernels, biases


def _make_schedule(
  config: ml_collections.ConfigDict,
  num_images: int,
  name: str,
  rate: float,
  drop_epochs: Sequence[float],
) -> optax.Schedule:
  rule = config.optimizer
  num_updates = to_updates(config, config.num_epochs, num_images)
  warmup = to_updates(config, rule.warmup_epochs, num_images)
  # What ends with the training begins where the warm-up ends.
  left = max(1, num_updates - warmup)
  match name:
    case "steps":
      schedule = schedules.make_steps(
        rate,
        drop_steps=[
          to_updates(config, epoch, num_images) for epoch in drop_epochs
        ],
        drop_factor=rule.drop_factor,
      )
    case "plateau":
      schedule = optax.constant_schedule(rate)
    case "exponential":
      schedule = schedules.make_exponential(
        rate,
        num_updates=num_updates,
        factor=rule.exponential_factor,
        steps=rule.exponential_steps,
      )
    case "polynomial":
      schedule = schedules.make_polynomial(
        rate,
        num_updates=left,
        power=rule.polynomial_power,
        end_rate=rule.end_rate,
      )
      schedule = schedules.shift(schedule, warmup)
    case "cosine":
      schedule = schedules.make_cosine(
        rate, num_updates=left, end_rate=rule.end_rate
      )
      schedule = schedules.shift(schedule, warmup)
  return schedules.warm_up(schedule, warmup)


def make_reported_schedule(
  config: ml_collections.ConfigDict, num_images: int
) -> optax.Schedule:
  """Learning rate of the kernels by step: that of the step's update."""
  kernels, _ = make_schedules(config, num_images)
  return lambda step: kernels(step // config.grad_accumulation_steps)


def make_plateau(config: ml_collections.ConfigDict) -> schedules.Plateau | None:
  """The rule that validations drive; None where the schedule is another."""
  rule = config.optimizer
  if rule.schedule != "plateau":
    return None
  return schedules.Plateau(
    factor=rule.drop_factor,
    patience=rule.plateau_patience,
    min_change=rule.plateau_min_change,
    max_drops=rule.plateau_max_drops,
  )


def make_optimizer(
  config: ml_collections.ConfigDict, num_images: int
) -> optax.GradientTransformationExtraArgs:
  """The update rule of a config."""
  rule = config.optimizer
  kernels, biases = make_schedules(config, num_images)
  of_conv1 = None
  if rule.conv1_rates:
    pairs = [
      (to_updates(config, epoch, num_images), rate)
      for epoch, rate in rule.conv1_rates
    ]
    of_conv1 = (
      schedules.replace_rates(kernels, pairs),
      schedules.replace_rates(
        biases,
        [(first, rate * rule.bias_lr_multiplier) for first, rate in pairs],
      ),
    )
  return optimizer.make_optimizer(
    kernels,
    biases,
    momentum=rule.momentum,
    weight_decay=rule.weight_decay,
    conv1_schedules=of_conv1,
    plateau=make_plateau(config),
    trust_coefficient=rule.trust_coefficient,
    ema_decay=rule.ema_decay,
    accumulate=config.grad_accumulation_steps,
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values of `config.optimizer` that do not go together.

  Raises:
    ValueError: names the fields, their values and what was expected.
  """
  rule = config.optimizer
  if rule.warmup_epochs >= config.num_epochs:
    raise ValueError(
      f"optimizer.warmup_epochs is {rule.warmup_epochs}, expected less than "
      f"num_epochs, {config.num_epochs:g}. Set config.optimizer.warmup_epochs."
    )
  if rule.conv1_rates and rule.schedule == "plateau":
    raise ValueError(
      f"optimizer.conv1_rates is {rule.conv1_rates}, expected () with "
      "optimizer.schedule=plateau, whose drops come at no epoch that is known. "
      "Set config.optimizer.conv1_rates=(), or config.optimizer.schedule."
    )
  make_plateau(config)

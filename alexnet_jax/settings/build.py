"""Builds augmentation, schedules and optimizer from a config.

A config counts in epochs; these objects count in steps (one batch each) and
updates (`grad_accumulation_steps` steps each).
"""

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
from alexnet_jax.planner import price

# Devices count steps in int32; what is due later never happens.
LAST_STEP = 2**31 - 1


def to_steps(
  config: ml_collections.ConfigDict, epochs: float, num_images: int
) -> int:
  return math.ceil(epochs * num_images / config.batch_size)


def to_updates(
  config: ml_collections.ConfigDict, epochs: float, num_images: int
) -> int:
  images = config.batch_size * config.grad_accumulation_steps
  return min(math.ceil(epochs * num_images / images), LAST_STEP)


def find_order_seed(config: ml_collections.ConfigDict) -> int:
  """Returns the seed of the order of the training images."""
  return config.seed if config.data.seed is None else config.data.seed


def find_statistics(
  config: ml_collections.ConfigDict, builder
) -> statistics_lib.Statistics:
  """Returns the dataset's own pixel statistics, or the published ones.

  Raises:
    ValueError: the dataset has no statistics, and the config asks for them.
  """
  if config.augment.statistics == "published":
    return statistics_lib.PUBLISHED
  statistics = sets.find_statistics(builder)
  if statistics is None:
    raise ValueError(
      f"dataset {builder.name!r} has no statistics of its pixels; set "
      "config.augment.statistics=published and config.augment.mean=(R, G, B) "
      "to the mean of its training split."
    )
  return statistics


def make_augmentation(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  statistics: statistics_lib.Statistics | None,
  num_images: int,
) -> augment.Augment:
  """Makes the augmentation.

  Args:
    statistics: of the training split; None: the published ones and a mean image
      of zeros, which have the same shapes.
    num_images: in the training split, for when the color noise ends.

  Raises:
    ValueError: fields of `config.augment` contradict each other, or do not fit
      the network or the statistics.
  """
  fields = config.augment.to_dict()
  del fields["statistics"]  # chosen by the caller
  mean = fields.pop("mean")
  noise_epochs = fields.pop("color_noise_until_epoch")
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
      if noise_epochs is None
      else min(to_steps(config, noise_epochs, num_images), LAST_STEP)
    ),
    **fields,
  )


def make_schedules(
  config: ml_collections.ConfigDict, num_images: int
) -> tuple[optax.Schedule, optax.Schedule]:
  """Makes the learning rates of the kernels and of the biases, by update.

  The biases follow the same schedule with drop epochs of their own, except that
  they drop by steps where the kernels fall exponentially, as in cuda-convnet.
  """
  rule = config.optimizer
  bias_schedule = "steps" if rule.schedule == "exponential" else rule.schedule
  bias_rate = rule.learning_rate * rule.bias_lr_multiplier
  return tuple(
    schedules.make_schedule(
      name,
      rate,
      num_updates=to_updates(config, config.num_epochs, num_images),
      warmup_updates=to_updates(config, rule.warmup_epochs, num_images),
      drop_steps=[to_updates(config, epoch, num_images) for epoch in epochs],
      options=rule.to_dict(),
    )
    for name, rate, epochs in (
      (rule.schedule, rule.learning_rate, rule.drop_epochs),
      (bias_schedule, bias_rate, rule.bias_drop_epochs),
    )
  )


def make_reported_schedule(
  config: ml_collections.ConfigDict, num_images: int
) -> optax.Schedule:
  """Makes the learning rate of the kernels, by step."""
  kernels, _ = make_schedules(config, num_images)
  return lambda step: kernels(step // config.grad_accumulation_steps)


def make_plateau(config: ml_collections.ConfigDict) -> schedules.Plateau | None:
  """Makes the rule that validations drive; None for all other schedules."""
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
  rule = config.optimizer
  kernels, biases = make_schedules(config, num_images)
  conv1_schedules = None
  if rule.conv1_rates:
    rates = [
      (to_updates(config, epoch, num_images), rate)
      for epoch, rate in rule.conv1_rates
    ]
    conv1_schedules = (
      schedules.with_constant_rates(kernels, rates),
      schedules.with_constant_rates(
        biases,
        [(first, rate * rule.bias_lr_multiplier) for first, rate in rates],
      ),
    )
  return optimizer.make_optimizer(
    kernels,
    biases,
    momentum=rule.momentum,
    weight_decay=rule.weight_decay,
    conv1_schedules=conv1_schedules,
    plateau=make_plateau(config),
    trust_coefficient=rule.trust_coefficient,
    ema_decay=rule.ema_decay,
    accumulate=config.grad_accumulation_steps,
  )


def check(config: ml_collections.ConfigDict, layers: Sequence[str]) -> None:
  """Refuses fields of `config.optimizer` that contradict something.

  Args:
    layers: names of the network's layers.

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
      "optimizer.schedule=plateau, whose drops have no known epochs. Set "
      "config.optimizer.conv1_rates=(), or config.optimizer.schedule."
    )
  if rule.conv1_rates and optimizer.CONV1 not in layers:
    raise ValueError(
      f"optimizer.conv1_rates is {rule.conv1_rates}, but the network has no "
      f"layer {optimizer.CONV1}, only {', '.join(layers)}, expected (). Set "
      "config.optimizer.conv1_rates=()."
    )
  make_plateau(config)  # drop_factor must be below 1


def make_workload(
  config: ml_collections.ConfigDict, network: wiring.Network
) -> price.Workload:
  """Makes the workload of a config.

  Args:
    config, network: from `settings.check`.
  """
  rule = config.optimizer
  return price.Workload(
    network=network,
    batch_size=config.batch_size,
    compute_dtype=config.compute_dtype,
    exchange_dtype=config.exchange_dtype,
    norms=rule.trust_coefficient is not None,
    # The momentum; averages of the parameters; sums of gradients.
    optimizer_slots=(
      1 + (rule.ema_decay is not None) + (config.grad_accumulation_steps > 1)
    ),
    stored_size=config.data.stored_size,
  )

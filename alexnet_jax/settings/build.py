"""Builds augmentation, schedules and optimizer from a config.

A config counts in epochs; these objects count in steps (one batch each) and
updates (`grad_accumulation_steps` steps each).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import optax

from alexnet_jax.data import augment
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
  return optimizer.make_optimizer(
    kernels,
    biases,
    momentum=rule.momentum,
    weight_decay=rule.weight_decay,
    layers=_make_layer_rules(config, kernels, biases, num_images),
    plateau=make_plateau(config),
    trust_coefficient=rule.trust_coefficient,
    ema_decay=rule.ema_decay,
    accumulate=config.grad_accumulation_steps,
  )


def find_layer_rules(
  config: ml_collections.ConfigDict,
) -> dict[str, dict[str, Any]]:
  """Returns the fields that are set in `config.optimizer.layers`, by layer."""
  groups = config.optimizer.to_dict().get("layers", {})
  return {
    layer: {name: value for name, value in group.items() if value is not None}
    for layer, group in groups.items()
  }


def find_frozen(
  config: ml_collections.ConfigDict, layers: Sequence[str]
) -> tuple[str, ...]:
  """Returns those of the layers that a config freezes for the whole run."""
  rules = find_layer_rules(config)
  return tuple(
    layer for layer in layers if rules.get(layer, {}).get("lr_multiplier") == 0
  )


def _make_layer_rules(
  config: ml_collections.ConfigDict,
  kernels: optax.Schedule,
  biases: optax.Schedule,
  num_images: int,
) -> dict[str, optimizer.LayerRule]:
  """Makes the rules of `config.optimizer.layers`.

  Args:
    kernels, biases: the schedules of all other layers.
  """
  of_bias = config.optimizer.bias_lr_multiplier

  def make(lr_multiplier=1.0, rates=(), weight_decay=None):
    if not rates:
      return optimizer.LayerRule(
        lr_multiplier=lr_multiplier, weight_decay=weight_decay
      )
    first = [to_updates(config, epoch, num_images) for epoch, _ in rates]
    # Until then the rate is multiplied; the rates themselves are not.
    return optimizer.LayerRule(
      schedules=tuple(
        schedules.with_constant_rates(
          functools.partial(_multiply, schedule, lr_multiplier),
          [
            (update, factor * rate)
            for update, (_, rate) in zip(first, rates, strict=True)
          ],
        )
        for schedule, factor in ((kernels, 1.0), (biases, of_bias))
      ),
      weight_decay=weight_decay,
    )

  rules = find_layer_rules(config)
  return {layer: make(**fields) for layer, fields in rules.items()}


def _multiply(schedule: optax.Schedule, factor: float, count) -> float:
  return factor * schedule(count)


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
  for layer, fields in find_layer_rules(config).items():
    _check_layer_rule(layer, fields, layers, schedule=rule.schedule)
  if len(find_frozen(config, layers)) == len(layers):
    raise ValueError(
      f"optimizer.layers freezes all of {', '.join(layers)}, so that nothing "
      "would be trained, expected a layer with an lr_multiplier above 0. Set "
      f"config.optimizer.layers.{layers[-1]}.lr_multiplier."
    )
  make_plateau(config)  # drop_factor must be below 1


def _check_layer_rule(
  layer: str,
  fields: Mapping[str, Any],
  layers: Sequence[str],
  *,
  schedule: str,
) -> None:
  """Refuses a group of `config.optimizer.layers` that contradicts something.

  Args:
    fields: those that are set.
    layers: names of the network's layers.
    schedule: of all layers.
  """
  group = f"optimizer.layers.{layer}"
  if layer not in layers:
    raise ValueError(
      f"optimizer.layers has a layer {layer!r}, expected one of the network's: "
      f"{', '.join(layers)}. Remove config.{group}."
    )
  if fields.get("rates") and schedule == "plateau":
    raise ValueError(
      f"{group}.rates is {fields['rates']}, expected None with "
      "optimizer.schedule=plateau, whose drops have no known epochs. Set "
      f"config.{group}.rates=None, or config.optimizer.schedule."
    )
  if fields.get("lr_multiplier") == 0:
    for name in ("rates", "weight_decay"):
      if fields.get(name):
        raise ValueError(
          f"{group}.{name} is {fields[name]}, but {group}.lr_multiplier is 0, "
          "which freezes the layer for the whole run, expected None. Set "
          f"config.{group}.{name}=None, or config.{group}.lr_multiplier."
        )


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

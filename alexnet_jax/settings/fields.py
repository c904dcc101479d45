"""What each field of a config may be by itself: one table, checked first.

What a field means stands in configs/default.py. What must hold between fields,
or between a field and layout, devices or data, is checked where they meet.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from alexnet_jax.data import augment, records
from alexnet_jax.network import wiring
from alexnet_jax.optim import schedules
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan
from alexnet_jax.settings import field_kinds, recipe

Axes, Choice, Epochs = field_kinds.Axes, field_kinds.Choice, field_kinds.Epochs
Number, Switch, Text = field_kinds.Number, field_kinds.Switch, field_kinds.Text
Tuple, Unset, Whole = field_kinds.Tuple, field_kinds.Unset, field_kinds.Whole

# Steps and updates are counted in int32.
_COUNT = 2**31 - 1
# More of something than anyone has had, by far: a slip of the hand, and no
# machine holds it. Large batches were of 2^16 images, pods are of 2^14 chips.
_IMAGES = _DEVICES = _CLASSES = 2**20
_PIXELS = 2**13
_EPOCHS = 1e6
_THREADS = _BATCHES = _STEPS_OF_A_RATE = _COLUMNS = 2**10

_EVERY = Whole()
_EPOCH = Number(most=_EPOCHS)
_POSITIVE = Number(above=True)
_SHARE = Number(most=1.0, below=True)
_SEED = Whole(least=0, most=2**32 - 1)
_PRECISION = Choice(tuple(plan.PRECISIONS))
_PLACEMENT = {
  "batch": Unset(Axes()),
  "features": Unset(Axes()),
  "arrive": Unset(Choice(layout_lib.ARRIVALS)),
  "stored": Unset(Axes()),
  "own_first": Unset(Switch()),
}
_MESH, _MESH_FIELD = (
  "layout.mesh.",
  Unset(Whole(most=_DEVICES)),
)

# Every field but the sizes of mesh axes, whose names are free: `_MESH_FIELD`.
FIELDS = {
  "seed": _SEED,
  "ensemble": Whole(most=_DEVICES),
  "batch_size": Whole(most=_IMAGES),
  "num_epochs": Number(above=True, most=_EPOCHS),
  "accumulate_batches": Whole(most=_COUNT),
  "label_smoothing": _SHARE,
  "exchange_precision": _PRECISION,
  "compute_precision": _PRECISION,
  "report_every_steps": _EVERY,
  "validate_every_steps": _EVERY,
  "validation_views": Choice((1, augment.VIEWS)),
  "checkpoint_every_steps": _EVERY,
  "keep_checkpoints": _EVERY,
  "keep_best": Whole(least=0),
  "keep_every_steps": Unset(_EVERY),
  "layout.name": Text(),
  "layout.axes": Unset(Axes()),
  "layout.allow_unplanned": Switch(),
  **{
    f"layout.{layer}.{name}": field
    for layer in layout_lib.LAYERS
    for name, field in _PLACEMENT.items()
  },
  "network.wiring": Text(),
  "network.columns": Unset(Whole(most=_COLUMNS)),
  "network.width": Number(above=True, most=_COLUMNS),
  "network.image_size": Whole(most=_PIXELS),
  "network.num_classes": Whole(most=_CLASSES),
  "network.dropout_rate": _SHARE,
  "network.dropout_scaling": Choice(wiring.DROPOUT_SCALINGS),
  "network.activation": Unset(Choice(wiring.ACTIVATIONS)),
  "network.normalisation": Unset(Choice(wiring.NORMALISATIONS)),
  "network.lrn_k": _POSITIVE,
  "network.lrn_alpha": _POSITIVE,
  "network.batch_norm_momentum": _SHARE,
  "network.pooling": Unset(
    Tuple(
      (Whole(most=_PIXELS), Whole(most=_PIXELS)),
      "(window, stride) in pixels, as (3, 2)",
    )
  ),
  "network.init": Choice(wiring.INITS),
  "data.name": Text(),
  "data.train_split": Text(),
  "data.validation_split": Text(),
  "data.stored_size": Whole(most=_PIXELS),
  "data.unreadable": Choice(records.UNREADABLE),
  "data.seed": Unset(_SEED),
  "data.threads": Unset(Whole(most=_THREADS)),
  "data.batches_ahead": Whole(most=_BATCHES),
  "augment.flip": Switch(),
  "augment.colour_noise": Number(),
  "augment.colour_noise_until_epoch": Unset(_EPOCH),
  "augment.statistics": Choice(recipe.STATISTICS),
  "augment.mean": Unset(
    Tuple(
      (Number(most=255.0),) * 3,
      "three numbers (R, G, B) of 0 to 255",
    )
  ),
  "augment.mean_from": Choice(augment.MEANS),
  "augment.colour_divisor": _POSITIVE,
  "augment.scale": _POSITIVE,
  "optimizer.learning_rate": Number(),
  "optimizer.schedule": Choice(schedules.NAMES),
  "optimizer.warmup_epochs": _EPOCH,
  "optimizer.drop_epochs": Epochs(_EPOCH, "rising epochs of 0 to 1,000,000"),
  "optimizer.drop_factor": Number(above=True, most=1.0),
  "optimizer.plateau_patience": Whole(most=_COUNT),
  "optimizer.plateau_min_change": Number(above=True, most=1.0, below=True),
  "optimizer.plateau_max_drops": Whole(least=0, most=_COUNT),
  "optimizer.exponential_factor": Number(least=1.0),
  "optimizer.exponential_steps": Unset(Whole(least=2, most=_STEPS_OF_A_RATE)),
  "optimizer.polynomial_power": _POSITIVE,
  "optimizer.end_rate": Number(most=1.0),
  "optimizer.bias_rate": Number(),
  "optimizer.bias_drop_epochs": Epochs(
    _EPOCH, "rising epochs of 0 to 1,000,000"
  ),
  "optimizer.conv1_rates": Epochs(
    Tuple((_EPOCH, Number()), "(epoch, rate)"),
    "pairs (epoch, rate), both 0 or more, with rising epochs",
  ),
  "optimizer.momentum": _SHARE,
  "optimizer.weight_decay": Number(),
  "optimizer.trust_coefficient": Unset(_POSITIVE),
  "optimizer.average_decay": Unset(_SHARE),
}


def check(values: Mapping[str, Any]) -> None:
  """Refuses a config with a field that cannot be what it is.

  Args:
    values: of all fields, by their full names, as `network.width`.

  Raises:
    ValueError, TypeError: names the field, its value and what was expected.
  """
  for name in FIELDS:
    if name not in values:
      raise ValueError(
        f"the config has no field {name}, expected {FIELDS[name].expected}. "
        "Start from configs/default.py, and set single fields, as "
        f"config.{name}."
      )
  for name, value in values.items():
    field = find_kind(name)
    if field is None:
      raise ValueError(
        f"the config has a field {name}, which nothing reads. Remove "
        f"config.{name}; configs/default.py lists all fields."
      )
    if not field_kinds.is_kind(field, value):
      raise TypeError(_say(name, value, field.expected))
    if value is not None and not field.accepts(value):
      raise ValueError(_say(name, value, field.expected))


def find_kind(name: str) -> Any:
  """Of a field, by its full name; None: there is no such field."""
  return _MESH_FIELD if name.startswith(_MESH) else FIELDS.get(name)


def _say(name: str, value: Any, expected: str) -> str:
  short = reprlib.Repr()
  short.maxstring = short.maxother = short.maxlong = 80
  return (
    f"{name} is {short.repr(value)}, expected {expected}. Set config.{name}."
  )

"""What each field of a config may be by itself: one table, checked first.

What a field means stands in configs/default.py. What must hold between fields,
or between a field and layout, devices or data, is checked where they meet.
"""

from __future__ import annotations

import dataclasses
import itertools
import reprlib
from collections.abc import Mapping
from typing import Any

from alexnet_jax.data import augment, records
from alexnet_jax.network import wiring
from alexnet_jax.optim import schedules
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan
from alexnet_jax.settings import build

# Kinds of values that a field of a config may have, each with its range.
#
# A kind has `kind`, the types of Python it may be, `expected`, itself in words,
# and `accepts(value)`, of a value of these types.

# Beside 0, what is computed with is a float32: of these magnitudes.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127
_LETTERS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
  """A whole number, of `least` to `most`; None: as large as one likes."""

  least: int = 1
  most: int | None = None

  kind = int

  @property
  def expected(self) -> str:
    if self.most is None:
      return f"a whole number of {self.least} or more"
    return f"a whole number of {self.least} to {self.most}"

  def accepts(self, value: int) -> bool:
    return self.least <= value and (self.most is None or value <= self.most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
  """A finite number that float32 holds, between two bounds.

  Attributes:
    least: the lower bound.
    above: whether the bound itself is out of range.
    most: the upper bound.
    below: whether that bound itself is out of range.
  """

  least: float = 0.0
  above: bool = False
  most: float = _LARGEST
  below: bool = False

  kind = (int, float)

  @property
  def expected(self) -> str:
    least = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
    if self.most == _LARGEST:
      return f"a finite number {'' if self.above else 'of '}{least}, a float32"
    most = f"below {self.most:g}" if self.below else f"at most {self.most:g}"
    return f"a number {'' if self.above else 'of '}{least} and {most}"

  def accepts(self, value: float) -> bool:
    if not self.least <= value <= self.most:  # also what is no number
      return False
    if value and abs(value) < _SMALLEST:
      return False
    return not (
      (self.above and value == self.least)
      or (self.below and value == self.most)
    )


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of some values."""

  values: tuple[str | int, ...]

  @property
  def kind(self) -> type:
    return type(self.values[0])

  @property
  def expected(self) -> str:
    return f"one of {', '.join(map(str, self.values))}"

  def accepts(self, value: str | int) -> bool:
    return value in self.values


@dataclasses.dataclass(frozen=True)
class Text:
  """A name, which is looked up elsewhere."""

  kind = str
  expected = f"1 to {_LETTERS} characters that can be printed"

  def accepts(self, value: str) -> bool:
    return 0 < len(value) <= _LETTERS and value.isprintable()


@dataclasses.dataclass(frozen=True)
class Switch:
  """On or off."""

  kind = bool
  expected = "True or False"

  def accepts(self, value: bool) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Axes:
  """Names of mesh axes."""

  kind = (tuple, list)
  expected = "a tuple of axes' names, as ('data',)"

  def accepts(self, value: tuple) -> bool:
    return all(isinstance(name, str) and Text().accepts(name) for name in value)


@dataclasses.dataclass(frozen=True)
class Tuple:
  """A fixed number of values, each of a kind of its own."""

  parts: tuple[Whole | Number, ...]
  expected: str

  kind = (tuple, list)

  def accepts(self, value: tuple) -> bool:
    return len(value) == len(self.parts) and all(
      is_kind(part, each) and part.accepts(each)
      for part, each in zip(self.parts, value, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Epochs:
  """Epochs that rise, each alone or with what happens there."""

  part: Number | Tuple
  expected: str

  kind = (tuple, list)

  def accepts(self, value: tuple) -> bool:
    if not all(
      is_kind(self.part, one) and self.part.accepts(one) for one in value
    ):
      return False
    epochs = [one[0] if isinstance(one, tuple | list) else one for one in value]
    return all(a < b for a, b in itertools.pairwise(epochs))


@dataclasses.dataclass(frozen=True)
class Unset:
  """None, or what else the field may be."""

  of: Whole | Number | Choice | Text | Axes | Tuple

  @property
  def kind(self) -> tuple[type, ...] | type:
    return self.of.kind

  @property
  def expected(self) -> str:
    return f"None or {self.of.expected}"

  def accepts(self, value: Any) -> bool:
    return self.of.accepts(value)


def is_kind(field: Any, value: Any) -> bool:
  """Whether a value is of the types of a kind; True is no number here."""
  if value is None:
    return isinstance(field, Unset)
  if isinstance(value, bool):
    return field.kind is bool
  return isinstance(value, field.kind)


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
_PRECISION = Choice(tuple(plan.DTYPE_BYTES))
_PLACEMENT = {
  "batch": Unset(Axes()),
  "features": Unset(Axes()),
  "arrive": Unset(Choice(layout_lib.ARRIVALS)),
  "fsdp": Unset(Axes()),
  "overlap_gather": Unset(Switch()),
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
  "grad_accumulation_steps": Whole(most=_COUNT),
  "label_smoothing": _SHARE,
  "exchange_dtype": _PRECISION,
  "compute_dtype": _PRECISION,
  "log_every_steps": _EVERY,
  "eval_every_steps": _EVERY,
  "validation_views": Choice((1, augment.VIEWS)),
  "checkpoint_every_steps": _EVERY,
  "max_to_keep": _EVERY,
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
  "network.normalization": Unset(Choice(wiring.NORMALIZATIONS)),
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
  "augment.color_noise": Number(),
  "augment.color_noise_until_epoch": Unset(_EPOCH),
  "augment.statistics": Choice(build.STATISTICS),
  "augment.mean": Unset(
    Tuple(
      (Number(most=255.0),) * 3,
      "three numbers (R, G, B) of 0 to 255",
    )
  ),
  "augment.mean_from": Choice(augment.MEANS),
  "augment.color_divisor": _POSITIVE,
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
  "optimizer.bias_lr_multiplier": Number(),
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
  "optimizer.ema_decay": Unset(_SHARE),
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
    if not is_kind(field, value):
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

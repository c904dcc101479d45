"""The values that each config field may have, and when it may change.

configs/default.py says what a field means. Relations between fields, and
between a field and layout, devices or data, are checked where they meet. A new
field needs a line in configs/default.py and one in `FIELDS`; a new one of a
placement or of a row is in their dataclass and in the table of its kind here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from alexnet_jax.data import augment
from alexnet_jax.network import wiring
from alexnet_jax.optim import schedules
from alexnet_jax.partition import layout as layout_lib

# Computations are in float32: 0, and normal numbers of these magnitudes.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127
_LONGEST_TEXT = 1000
# Steps and updates are counted in int32.
_MAX_COUNT = 2**31 - 1
# Far above any real run (large batches have 2^16 images, pods 2^14 chips), so
# that a slip of the hand is refused before it takes all memory.
_MAX_IMAGES = _MAX_DEVICES = _MAX_CLASSES = 2**20
_MAX_PIXELS = 2**13
_MAX_FEATURES = 2**24
_MAX_EPOCHS = 10**6
_MAX_THREADS = _MAX_BATCHES = _MAX_RATES = _MAX_COLUMNS = 2**10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """The base of all kinds of fields.

  A kind has `types`, the Python types of its values, `expected`, its values in
  words, and `accepts(value)` for a value of these types.

  Attributes:
    optional: the field may be None.
    may_change: the field may differ between two starts of one run: it does not
      change results.
    unless_schedule: values of optimizer.schedule with which it does.
    per_process: processes of one run may have different values.
  """

  optional: bool = False
  may_change: bool = False
  unless_schedule: tuple[str, ...] = ()
  per_process: bool = False

  def has_type(self, value: Any) -> bool:
    """Returns whether a value has the right type; True is not an integer."""
    if value is None:
      return self.optional
    if isinstance(value, bool):
      return self.types is bool
    return isinstance(value, self.types)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number(Field):
  """An integer, or a finite number that float32 holds.

  Attributes:
    least: the lower bound.
    most: the upper bound; None: for an integer none, else that of float32.
    above: the lower bound itself is out of range.
    below: the upper bound itself is out of range.
    integer: only integers are accepted, of any size below `most`.
  """

  least: float = 0
  most: float | None = None
  above: bool = False
  below: bool = False
  integer: bool = False

  @property
  def types(self) -> tuple[type, ...]:
    return (int,) if self.integer else (int, float)

  @property
  def expected(self) -> str:
    bounds = f"{'>' if self.above else '>='} {self.least:,}"
    if self.most is not None:
      bounds += f" and {'<' if self.below else '<='} {self.most:,}"
    if self.integer:
      return f"an integer {bounds}"
    return f"a {'finite float32' if self.most is None else 'number'} {bounds}"

  def accepts(self, value: float) -> bool:
    most = self.most
    if most is None:
      most = math.inf if self.integer else _LARGEST
    # False for nan.
    from_least = value > self.least if self.above else value >= self.least
    to_most = value < most if self.below else value <= most
    return from_least and to_most and (value == 0 or abs(value) >= _SMALLEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Field):
  """One of a few values of one type."""

  values: tuple[str | int | bool, ...]

  @property
  def types(self) -> type:
    return type(self.values[0])

  @property
  def expected(self) -> str:
    return f"one of {', '.join(map(str, self.values))}"

  def accepts(self, value: str | int | bool) -> bool:
    return value in self.values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Field):
  """A name, which is looked up elsewhere."""

  types = str
  expected = f"1 to {_LONGEST_TEXT} printable characters"

  def accepts(self, value: str) -> bool:
    return 0 < len(value) <= _LONGEST_TEXT and value.isprintable()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name(Text):
  """The name of a mesh axis or of a layer, which is a group of fields."""

  expected = "a name of letters, digits and _"

  def accepts(self, value: str) -> bool:
    return super().accepts(value) and value.isidentifier()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuple(Field):
  """A tuple of values.

  Attributes:
    parts: the kind of each value; with `any_length`, one kind for all.
    expected: its values in words.
    any_length: it has any number of values.
    rising: each value, or the first part of each value, exceeds the one before.
    distinct: no value occurs twice.
  """

  parts: tuple[Field, ...]
  expected: str
  any_length: bool = False
  rising: bool = False
  distinct: bool = False

  types = (tuple, list)

  def accepts(self, value: tuple) -> bool:
    parts = self.parts * len(value) if self.any_length else self.parts
    if len(value) != len(parts) or not all(
      part.has_type(one) and part.accepts(one)
      for part, one in zip(parts, value, strict=True)
    ):
      return False
    if self.distinct and len({*value}) < len(value):
      return False
    if not self.rising:
      return True
    firsts = [one[0] if isinstance(one, tuple | list) else one for one in value]
    return all(a < b for a, b in itertools.pairwise(firsts))


def _integer(least: int = 1, most: int | None = None, **options) -> Number:
  return Number(integer=True, least=least, most=most, **options)


def _switch(**options) -> Choice:
  return Choice(values=(True, False), **options)


def _axes(**options) -> Tuple:
  return Tuple(
    parts=(Name(),),
    any_length=True,
    expected="a tuple of names of mesh axes, such as ('data',)",
    **options,
  )


_POSITIVE = Number(above=True)
_FRACTION = Number(most=1, below=True)
_SEED = _integer(0, 2**32 - 1)
_DTYPE = Choice(values=("float32", "bfloat16"))
_EPOCH = Number(most=_MAX_EPOCHS)
_RISING_EPOCHS = Tuple(
  parts=(_EPOCH,),
  any_length=True,
  rising=True,
  expected="a tuple of rising epochs from 0 to 1,000,000",
)
_STEPS = _integer(may_change=True)
_PIXELS = _integer(most=_MAX_PIXELS, optional=True)
_PADDING = Tuple(
  parts=(_integer(0, _MAX_PIXELS),) * 2,
  expected="zeros (before, after) in pixels, such as (2, 2)",
  optional=True,
)
_LRN = {
  "size": _integer(most=_MAX_FEATURES, optional=True),
  **dict.fromkeys(("k", "alpha", "beta"), Number(above=True, optional=True)),
}
# Fields of groups whose names are those of mesh axes or of layers, which are
# any: (group, table), where * stands for such a name. `None` is as in the named
# layout or wiring; a group need not have all fields.
_GROUPS = (
  (
    "layout.mesh",
    {"*": _integer(most=_MAX_DEVICES, optional=True)},
  ),
  (
    "layout.*",
    {
      **dict.fromkeys(
        (*layout_lib.DIMENSIONS, "fsdp"),
        _axes(optional=True),
      ),
      "overlap_gather": _switch(optional=True),
    },
  ),
  (
    "network.layers.*",
    {
      "reads": Choice(values=wiring.READS, optional=True),
      "features": _integer(most=_MAX_FEATURES, optional=True),
      "window": _integer(0, _MAX_PIXELS, optional=True),
      "stride": _PIXELS,
      "padding": _PADDING,
      "activation": Choice(
        values=(*wiring.ACTIVATIONS, "linear"), optional=True
      ),
      "normalize": Choice(
        values=wiring.NORMALIZATIONS,
        optional=True,
      ),
      "order": Tuple(
        parts=(Choice(values=wiring.ORDER),) * len(wiring.ORDER),
        expected=f"{', '.join(wiring.ORDER)}, each once, in any order",
        optional=True,
        distinct=True,
      ),
      "dropout": _switch(optional=True),
      "dropout_rate": dataclasses.replace(_FRACTION, optional=True),
      "kernel_std": Number(optional=True),
      "bias": Number(least=-_LARGEST, optional=True),
    },
  ),
  (
    "network.layers.*.pool",
    {
      "window": _PIXELS,
      "stride": _PIXELS,
      "kind": Choice(values=("none", *wiring.POOLINGS), optional=True),
      "padding": _PADDING,
    },
  ),
  ("network.layers.*.lrn", _LRN),
  # A size of 0: there is none.
  (
    "network.layers.*.map_lrn",
    _LRN | {"size": _integer(0, _MAX_FEATURES, optional=True)},
  ),
  (
    "optimizer.layers.*",
    {
      "lr_multiplier": Number(optional=True),
      "rates": Tuple(
        parts=(Tuple(parts=(_EPOCH, Number()), expected="(epoch, rate)"),),
        any_length=True,
        rising=True,
        expected="pairs (epoch, rate), both >= 0, with rising epochs",
        optional=True,
      ),
      "weight_decay": Number(optional=True),
    },
  ),
)
# Groups whose names are those of layers.
_LAYERS = ("network.layers", "optimizer.layers")
# Old name -> new name, of fields that a config in Python may still have.
_RENAMED = {"optimizer.conv1_rates": "optimizer.layers.conv1.rates"}

# Every field but those of `_GROUPS`.
FIELDS = {
  "seed": _SEED,
  "ensemble": _integer(most=_MAX_DEVICES),
  "batch_size": _integer(most=_MAX_IMAGES),
  "num_epochs": Number(
    above=True,
    most=_MAX_EPOCHS,
    may_change=True,
    # The learning rate reaches its end with the run.
    unless_schedule=("exponential", "polynomial", "cosine"),
  ),
  "grad_accumulation_steps": _integer(most=_MAX_COUNT),
  "label_smoothing": _FRACTION,
  "exchange_dtype": _DTYPE,
  "compute_dtype": _DTYPE,
  "log_every_steps": _STEPS,
  # Validations drive the plateau schedule.
  "eval_every_steps": _integer(may_change=True, unless_schedule=("plateau",)),
  "validation_views": Choice(
    values=(1, augment.VIEWS), may_change=True, unless_schedule=("plateau",)
  ),
  "checkpoint_every_steps": _STEPS,
  "max_to_keep": _STEPS,
  "keep_best": _integer(0, may_change=True),
  "keep_every_steps": _integer(optional=True, may_change=True),
  "layout.name": Text(),
  "layout.axes": _axes(optional=True),
  "layout.allow_unplanned": _switch(),
  "network.wiring": Text(),
  "network.order": Tuple(
    parts=(Name(),),
    any_length=True,
    expected="a tuple of names of layers, such as ('conv1', 'fc2')",
    optional=True,
    distinct=True,
  ),
  "network.columns": _integer(most=_MAX_COLUMNS, optional=True),
  "network.image_channels": Choice(values=(1, 3), optional=True),
  "network.width": Number(above=True, most=_MAX_COLUMNS),
  "network.image_size": _integer(most=_MAX_PIXELS),
  "network.num_classes": _integer(most=_MAX_CLASSES, optional=True),
  "network.dropout_rate": _FRACTION,
  "network.dropout_scaling": Choice(values=wiring.DROPOUT_SCALINGS),
  "network.activation": Choice(values=wiring.ACTIVATIONS, optional=True),
  "network.normalization": Choice(values=wiring.NORMALIZATIONS, optional=True),
  "network.lrn_k": Number(above=True, optional=True),
  "network.lrn_alpha": Number(above=True, optional=True),
  "network.batch_norm_momentum": _FRACTION,
  "network.pooling": Tuple(
    parts=(_integer(most=_MAX_PIXELS),) * 2,
    expected="(window, stride) in pixels, such as (3, 2)",
    optional=True,
  ),
  "network.init": Choice(values=wiring.INITS),
  "data.name": Text(),
  "data.train_split": Text(),
  "data.validation_split": Text(),
  "data.stored_size": _integer(most=_MAX_PIXELS),
  "data.unreadable": Choice(values=("stop", "replace"), may_change=True),
  "data.seed": dataclasses.replace(_SEED, optional=True),
  "data.threads": _integer(
    most=_MAX_THREADS, optional=True, may_change=True, per_process=True
  ),
  "data.batches_ahead": _integer(most=_MAX_BATCHES, may_change=True),
  "augment.flip": _switch(),
  "augment.color_noise": Number(),
  "augment.color_noise_until_epoch": Number(most=_MAX_EPOCHS, optional=True),
  "augment.statistics": Choice(values=("dataset", "published")),
  "augment.mean": Tuple(
    parts=(Number(most=255),) * 3,
    expected="three numbers (R, G, B) from 0 to 255",
    optional=True,
  ),
  "augment.mean_from": Choice(values=augment.MEANS),
  "augment.color_divisor": _POSITIVE,
  "augment.scale": _POSITIVE,
  "augment.channel_scale": Tuple(
    parts=(_POSITIVE,) * 3,
    expected="three numbers (R, G, B), each > 0",
    optional=True,
  ),
  "augment.color_order": Choice(values=augment.COLOR_ORDERS),
  "init_from.workdir": Text(optional=True),
  "init_from.step": _integer(0, _MAX_COUNT, optional=True),
  "init_from.leave_out": Tuple(
    parts=(Name(),),
    any_length=True,
    expected="a tuple of names of layers, such as ('fc8',)",
    distinct=True,
  ),
  "init_from.optimizer": Choice(values=("new", "keep")),
  "optimizer.learning_rate": Number(),
  "optimizer.schedule": Choice(values=schedules.NAMES),
  "optimizer.warmup_epochs": _EPOCH,
  "optimizer.drop_epochs": _RISING_EPOCHS,
  "optimizer.drop_factor": Number(above=True, most=1),
  "optimizer.plateau_patience": _integer(most=_MAX_COUNT),
  "optimizer.plateau_min_change": Number(above=True, most=1, below=True),
  "optimizer.plateau_max_drops": _integer(0, _MAX_COUNT),
  "optimizer.exponential_factor": Number(least=1),
  "optimizer.exponential_steps": _integer(2, _MAX_RATES, optional=True),
  "optimizer.polynomial_power": _POSITIVE,
  "optimizer.end_rate": Number(most=1),
  "optimizer.bias_lr_multiplier": Number(),
  "optimizer.bias_drop_epochs": _RISING_EPOCHS,
  "optimizer.momentum": _FRACTION,
  "optimizer.weight_decay": Number(),
  "optimizer.trust_coefficient": Number(above=True, optional=True),
  "optimizer.ema_decay": Number(most=1, below=True, optional=True),
}


def check(values: Mapping[str, Any]) -> None:
  """Checks every field by itself; `values` has them by their full names.

  Raises:
    ValueError, TypeError: names the field, its value and what was expected.
  """
  for name, field in FIELDS.items():
    if name not in values:
      raise ValueError(
        f"the config has no field {name}, expected {_describe(field)}. Start "
        "from configs/default.py, and set single fields with "
        f"config.{name} = ...."
      )
  for name, value in values.items():
    field = find_field(name)
    if field is None:
      raise _make_unknown_error(name, value)
    has_type = field.has_type(value)
    if has_type and (value is None or field.accepts(value)):
      continue
    raise (ValueError if has_type else TypeError)(
      f"{name} is {wiring.shorten(value)}, expected {_describe(field)}. "
      f"Set config.{name}{_write_names(field, value)}."
    )


def find_field(name: str) -> Field | None:
  """The field of a full name; None: there is no such field."""
  group, _, last = name.rpartition(".")
  table = _find_table(group) or {}
  return FIELDS.get(name) or table.get("*") or table.get(last)


def find_changeable(schedule: str | None = None) -> frozenset[str]:
  """Names the fields that may differ between two starts of one run.

  Args:
    schedule: optimizer.schedule of the run; None: any.

  Returns:
    Full names; `layout` stands for all of its fields.
  """
  return frozenset({"layout"}) | {
    name
    for name, field in FIELDS.items()
    if field.may_change and schedule not in field.unless_schedule
  }


def _find_table(group: str) -> Mapping[str, Field] | None:
  """The fields of a group of `_GROUPS` by its full name, if there is one."""
  words = group.split(".")
  for pattern, table in _GROUPS:
    parts = pattern.split(".")
    if len(parts) == len(words) and all(
      part in ("*", word) for part, word in zip(parts, words, strict=True)
    ):
      return table
  return None


def _write_names(field: Field, value: Any) -> str:
  """Returns the end of an advice: a tuple of the names in `column,data`.

  Empty for other fields and values.
  """
  texts = (value,) if isinstance(value, str) else value
  is_of_names = isinstance(field, Tuple) and isinstance(field.parts[0], Name)
  if not is_of_names or not isinstance(texts, tuple | list):
    return ""
  if not all(isinstance(text, str) for text in texts):
    return ""
  if not (words := tuple(re.findall(r"\w+", " ".join(texts)))):
    return ""
  if isinstance(value, str):
    return f"={words!r}: a comma makes the tuple"
  return f"={words!r}; on the command line in double quotes"


def _make_unknown_error(name: str, value: Any) -> Exception:
  """Makes the error for a field that there is not."""
  if gone := layout_lib.describe_removed_field(name):
    return ValueError(gone)
  if new := _RENAMED.get(name):
    return ValueError(
      f"the field {name} is now called {new}. Set config.{new}."
    )
  group, _, last = name.rpartition(".")
  table = _find_table(name)
  if name in _LAYERS or table is not None:
    known = "layers" if name in _LAYERS else f"fields {_list_fields(table)}"
    part = None if group in _LAYERS else wiring.NO_PART.get(last)
    example = part or f"{{{next(iter(table or ('conv4',)))!r}: ...}}"
    return TypeError(
      f"{name} is {wiring.shorten(value)}, expected a group with any of the "
      f"{known}. Set config.{name} = {example}, or remove it."
    )
  if (table := _find_table(group)) is not None:
    return ValueError(
      f"the config has a field {name}, which nothing reads, expected one of "
      f"{_list_fields(table)}. Remove config.{name}."
    )
  return ValueError(
    f"the config has a field {name}, which nothing reads. Remove "
    f"config.{name}; configs/default.py lists all fields."
  )


def _list_fields(table: Mapping[str, Field]) -> str:
  """Lists the fields of a group; those of a row have groups beside them."""
  groups = ("pool", "lrn", "map_lrn") if "reads" in table else ()
  return ", ".join((*table, *groups))


def _describe(field: Field) -> str:
  return f"None or {field.expected}" if field.optional else field.expected

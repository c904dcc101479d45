"""Kinds of values that a field of a config may have, each with its range.

A kind has `kind`, the types of Python it may be, `expected`, itself in words,
and `accepts(value)`, of a value of these types.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

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

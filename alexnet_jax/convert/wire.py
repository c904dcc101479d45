"""Reads messages of Protocol Buffers by the numbers of their fields.

Only what the format itself says, without descriptors:
https://protobuf.dev/programming-guides/encoding. Arrays are views of the file's
bytes, so that nothing is copied.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# A network has some hundreds of layers and fields; arrays are packed.
_MAX_FIELDS = 2**16

Value = int | memoryview


@dataclasses.dataclass(frozen=True)
class Message:
  """The fields of a message: {number: values}, in the order of the file."""

  fields: dict[int, list[Value]]

  def integer(self, number: int, default: int = 0) -> int:
    """Returns an integer of 0 or more, or the code of an enumeration."""
    value = self.fields.get(number, [default])[-1]
    if not isinstance(value, int):
      raise ValueError(f"field {number} is no integer")
    return value

  def number(self, number: int, default: float) -> float:
    """Returns a float32 as the shortest decimal that rounds to it."""
    values = self.floats(number)
    return float(str(values[-1])) if len(values) else default

  def text(self, number: int) -> str:
    value = self.fields.get(number, [memoryview(b"")])[-1]
    return _to_bytes(number, value).tobytes().decode("utf-8", "replace")

  def texts(self, number: int) -> list[str]:
    return [
      _to_bytes(number, value).tobytes().decode("utf-8", "replace")
      for value in self.fields.get(number, [])
    ]

  def message(self, number: int) -> Message:
    """Returns a message in this one; without fields if it has none."""
    found = self.messages(number)
    return found[-1] if found else Message({})

  def messages(self, number: int) -> list[Message]:
    return [
      parse(_to_bytes(number, value)) for value in self.fields.get(number, [])
    ]

  def floats(self, number: int, dtype: str = "<f4") -> np.ndarray:
    """Returns repeated numbers, packed or not: f32[values]."""
    parts = []
    for value in self.fields.get(number, []):
      value = _to_bytes(number, value)
      if len(value) % np.dtype(dtype).itemsize:
        raise ValueError(f"field {number} has {len(value):,} bytes")
      parts.append(np.frombuffer(value, dtype))
    if len(parts) == 1:
      return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)

  def integers(self, number: int) -> list[int]:
    """Returns repeated integers, packed or not."""
    values = []
    for value in self.fields.get(number, []):
      if isinstance(value, int):
        values.append(value)
        continue
      position = 0
      while position < len(value):
        one, position = _read_varint(value, position)
        values.append(one)
        if len(values) > _MAX_FIELDS:
          raise ValueError(f"field {number} has too many values")
    return values


def parse(contents: bytes | memoryview) -> Message:
  """Splits a message into its fields.

  Raises:
    ValueError: it is no message, or ends early.
  """
  contents = memoryview(contents)
  fields: dict[int, list[Value]] = {}
  position = count = 0
  while position < len(contents):
    start = position
    key, position = _read_varint(contents, position)
    number, kind = key >> 3, key & 7
    if kind == _VARINT:
      value, position = _read_varint(contents, position)
    else:
      if kind == _BYTES:
        length, position = _read_varint(contents, position)
      elif kind in (_FIXED32, _FIXED64):
        length = 4 if kind == _FIXED32 else 8
      else:
        raise ValueError(f"byte {start:,} begins no field")
      value, position = contents[position : position + length], position
      if len(value) < length:
        raise ValueError(
          f"a field of {length:,} bytes begins at byte {position:,} of "
          f"{len(contents):,}"
        )
      position += length
    count += 1
    if not number or count > _MAX_FIELDS:
      raise ValueError(f"byte {start:,} begins no field, or one too many")
    fields.setdefault(number, []).append(value)
  return Message(fields)


def _read_varint(contents: memoryview, position: int) -> tuple[int, int]:
  """Returns a number of up to ten bytes, and the position after it."""
  value = 0
  for index in range(10):
    if position + index >= len(contents):
      raise ValueError(f"a number at byte {position:,} has no end")
    byte = contents[position + index]
    value |= (byte & 127) << 7 * index
    if byte < 128:
      return value, position + index + 1
  raise ValueError(f"a number at byte {position:,} has more than ten bytes")


def _to_bytes(number: int, value: Value) -> memoryview:
  if isinstance(value, int):
    raise ValueError(f"field {number} is an integer")
  return value

"""Reads pickles of dicts, lists, text, numbers and arrays; runs none of them.

A pickle is a program. `pickletools` of the standard library only splits it into
its operations; those that build plain values are carried out here, and a call
is carried out only if it is one of `_CALLS`, by the function there. Nothing is
imported, no class of another module is made, and no attribute is set.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

# A checkpoint with its optimizer has some thousands. Each may make an object.
_MAX_OPERATIONS = 2**20
# Types of PyTorch's storages; of its quantized ones there is no array.
_STORAGES = {
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
  "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
# Operations that push a value that is written in the pickle.
_VALUES = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE"),
  *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

# (key, type, number of values) -> the values: [values].
FindStorage = Callable[[str, np.dtype, int], np.ndarray]


class RefusedError(ValueError):
  """A pickle that would do something else than build arrays."""


@dataclasses.dataclass(frozen=True)
class _Global:
  """A name that a pickle asks for, as "module.name"."""

  name: str


@dataclasses.dataclass(eq=False)
class _Dtype:
  """A NumPy type under construction."""

  code: str
  order: str = "|"

  def make(self) -> np.dtype:
    # An object, a record or a time is no number.
    if self.code.lstrip("<>=|")[:1] not in ("f", "i", "u", "b", "c"):
      raise RefusedError(
        f"an array of type {self.code!r}, expected one of numbers"
      )
    dtype = np.dtype(self.code)
    return dtype.newbyteorder(self.order) if self.order in "<>" else dtype


@dataclasses.dataclass(eq=False)
class _Array:
  """A NumPy array under construction; `value` may also be that of an object."""

  value: Any = None


def load(file: BinaryIO, *, find_storage: FindStorage | None = None) -> Any:
  """Reads one pickle from a file, which is then at its end.

  Args:
    file: in memory, so that no length in it can ask for more than there is.
    find_storage: returns the values of a storage of PyTorch; None: a pickle
      that refers to one is refused.

  Returns:
    Dicts, lists, tuples, str, bytes, numbers, None, and NumPy arrays in them.
    Text of Python 2 is latin1.

  Raises:
    RefusedError: it asks for anything else; names it.
    ValueError: it is damaged.
  """
  machine = _Machine(find_storage)
  try:
    with warnings.catch_warnings():
      # Of text with backslashes.
      warnings.simplefilter("ignore", DeprecationWarning)
      machine.run(file)
    (result,) = machine.stack
    return _finish(result, {})
  except RefusedError:
    raise
  except RecursionError as error:
    raise RefusedError("values in values, too deep") from error
  # A damaged pickle takes from an empty stack, counts a text, and so on.
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise ValueError(f"the pickle in it is damaged ({error})") from error


class _Machine:
  """Carries out the operations of a pickle, as far as they build values."""

  def __init__(self, find_storage: FindStorage | None):
    self.stack: list[Any] = []
    self._below: list[list[Any]] = []  # stacks below a mark
    self._memo: dict[int, Any] = {}
    self._find_storage = find_storage

  def run(self, file: BinaryIO) -> None:
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
      if count == _MAX_OPERATIONS:
        raise RefusedError(f"more than {_MAX_OPERATIONS:,} operations")
      self._perform(operation.name, argument)

  def _perform(self, name: str, argument: Any) -> None:
    stack = self.stack
    if name in _VALUES:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _TUPLES:
      count = _TUPLES[name]
      parts = [stack.pop() for _ in range(count)]
      stack.append(tuple(reversed(parts)))
    else:
      self._perform_other(name, argument)

  def _perform_other(self, name: str, argument: Any) -> None:
    stack = self.stack
    match name:
      case "PROTO" | "FRAME" | "STOP":
        pass
      case "MARK":
        self._below.append(stack)
        self.stack = []
      case "EMPTY_DICT":
        stack.append({})
      case "EMPTY_LIST":
        stack.append([])
      case "TUPLE":
        self._take_marked(lambda parts: self.stack.append(tuple(parts)))
      case "LIST":
        self._take_marked(self.stack_list)
      case "DICT":
        self._take_marked(lambda parts: self.stack.append(_to_dict({}, parts)))
      case "SETITEMS":
        self._take_marked(lambda parts: _to_dict(self.stack[-1], parts))
      case "SETITEM":
        value, key = stack.pop(), stack.pop()
        _to_dict(stack[-1], [key, value])
      case "APPENDS":
        self._take_marked(lambda parts: _to_list(self.stack[-1], parts))
      case "APPEND":
        value = stack.pop()
        _to_list(stack[-1], [value])
      case "PUT" | "BINPUT" | "LONG_BINPUT":
        self._memo[int(argument)] = stack[-1]
      case "MEMOIZE":
        self._memo[len(self._memo)] = stack[-1]
      case "GET" | "BINGET" | "LONG_BINGET":
        stack.append(self._memo[int(argument)])
      case "GLOBAL":
        stack.append(_find_global(str(argument).replace(" ", ".", 1)))
      case "STACK_GLOBAL":
        last, module = stack.pop(), stack.pop()
        stack.append(_find_global(f"{_to_text(module)}.{_to_text(last)}"))
      case "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(function, arguments))
      case "BUILD":
        state = stack.pop()
        _set_state(stack[-1], state)
      case "BINPERSID":
        stack.append(self._read_storage(stack.pop()))
      case _:
        raise RefusedError(f"the operation {name}")

  def stack_list(self, parts: list[Any]) -> None:
    self.stack.append(parts)

  def _take_marked(self, use: Callable[[list[Any]], object]) -> None:
    parts, self.stack = self.stack, self._below.pop()
    use(parts)

  def _read_storage(self, reference: Any) -> np.ndarray:
    """Finds the values that a tensor of PyTorch is a view of."""
    kind, storage, key, _, count = reference[:5]
    if kind != "storage" or self._find_storage is None:
      raise RefusedError(f"a reference to {_show(kind)}")
    name = getattr(storage, "name", "").removeprefix("torch.")
    if name not in _STORAGES:
      raise RefusedError(f"a storage of type {_show(storage)}")
    count = _to_count(count)
    if not isinstance(key, str):
      raise ValueError(f"a storage called {_show(key)}")
    values = self._find_storage(key, np.dtype(_STORAGES[name]), count)
    if values.shape != (count,):
      raise ValueError(
        f"storage {_show(key)} has {values.size:,} values of {count:,}"
      )
    return values


def _show(value: Any) -> str:
  """Describes a value; lists in lists could have a text of any length."""
  if isinstance(value, _Global):
    return repr(value.name[:200])
  if isinstance(value, str | bytes | int | float | None):
    return repr(value)[:80]
  return type(value).__name__.lstrip("_")


def _to_text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(f"{_show(value)} where text belongs")
  return value


def _to_count(value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise ValueError(f"{_show(value)} where a size belongs")
  return value


def _to_dict(made: Any, parts: list[Any]) -> dict:
  if not isinstance(made, dict) or len(parts) % 2:
    raise ValueError("entries of what is no dict")
  for key, value in zip(parts[::2], parts[1::2], strict=True):
    # Of a tuple the hash is computed in depth, however deep it is.
    if not isinstance(key, str | bytes | int | float | None):
      raise RefusedError(f"a dict with a key of type {type(key).__name__}")
    made[key] = value
  return made


def _make_dict(pairs: Any = ()) -> dict:
  parts = []
  for pair in pairs:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
      raise ValueError(f"{_show(pair)} where a key and a value belong")
    parts += pair
  return _to_dict({}, parts)


def _to_list(made: Any, parts: list[Any]) -> None:
  if not isinstance(made, list):
    raise ValueError("entries of what is no list")
  made.extend(parts)


def _find_global(name: str) -> _Global:
  is_storage = name.removeprefix("torch.") in _STORAGES
  if name in _CALLS or name in _NAMES or is_storage:
    return _Global(name)
  raise RefusedError(f"{name[:200]!r}")


def _call(function: Any, arguments: Any) -> Any:
  call = _CALLS.get(getattr(function, "name", ""))
  if call is None or not isinstance(arguments, tuple):
    raise RefusedError(f"a call of {_show(function)}")
  return call(*arguments)


def _set_state(made: Any, state: Any) -> None:
  match made:
    case _Array():
      _, shape, dtype, is_fortran, data = state
      made.value = _make_array(shape, dtype, is_fortran, data)
    case _Dtype():
      made.order = _to_text(state[1])
    case dict():
      pass  # the attribute _metadata of PyTorch's state dicts: versions
    case _:
      raise RefusedError(f"a state of {type(made).__name__}")


def _make_array(shape, dtype, is_fortran, data) -> Any:
  if not isinstance(dtype, _Dtype):
    raise ValueError("an array without a type")
  # `np.save` puts a dict into an array of one object without dimensions.
  if dtype.code.lstrip("|") in ("O", "O8", "O4"):
    if shape != () or not isinstance(data, list) or len(data) != 1:
      raise RefusedError("an array of objects")
    return data[0]
  if isinstance(data, str):  # of Python 2
    data = data.encode("latin1")
  if not isinstance(data, bytes) or not isinstance(shape, tuple):
    raise ValueError("an array without its bytes")
  made, sizes = dtype.make(), [_to_count(size) for size in shape]
  if math.prod(sizes) * made.itemsize != len(data):
    raise ValueError(
      f"{len(data):,} bytes for an array of {sizes} of {made.name}"
    )
  values = np.frombuffer(data, made)
  return values.reshape(sizes, order="F" if is_fortran else "C")


def _reconstruct(kind: Any, *_: Any) -> _Array:
  if getattr(kind, "name", None) != "numpy.ndarray":
    raise RefusedError(f"an array of class {_show(kind)}")
  return _Array()


def _make_scalar(dtype: _Dtype, data: Any) -> Any:
  return _make_array((), dtype, False, data).item()


def _encode(text: str, encoding: str) -> bytes:
  if encoding not in ("latin1", "latin-1"):
    raise RefusedError(f"text in {_show(encoding)}")
  return _to_text(text).encode("latin1")


def _rebuild_tensor(
  storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
  """Makes the view of a storage that a tensor of PyTorch is."""
  sizes, strides = map(_to_count, size), map(_to_count, stride)
  sizes, strides = tuple(sizes), tuple(strides)
  if not isinstance(storage, np.ndarray) or len(sizes) != len(strides):
    raise ValueError("a tensor without its storage")
  # With a stride of 0 a few values would be an array of any size.
  if math.prod(sizes) > storage.size:
    raise ValueError(f"a tensor of {sizes} in {storage.size:,} values")
  return np.ndarray(  # checks the bounds
    sizes,
    storage.dtype,
    storage,
    _to_count(offset) * storage.itemsize,
    [one * storage.itemsize for one in strides],
  )


# What a pickle may call, and what is done then.
_CALLS: dict[str, Callable[..., Any]] = {
  "collections.OrderedDict": _make_dict,
  "_codecs.encode": _encode,
  "numpy.dtype": lambda code, *_: _Dtype(_to_text(code)),
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
  **{
    f"numpy.{core}.multiarray.{name}": call
    for core in ("core", "_core")
    for name, call in (("_reconstruct", _reconstruct), ("scalar", _make_scalar))
  },
}
# What it may name without calling it.
_NAMES = ("numpy.ndarray",)


def _finish(value: Any, finished: dict[int, Any]) -> Any:
  """Replaces arrays under construction by arrays; each value once."""
  if id(value) in finished:
    return finished[id(value)]
  match value:
    case _Array():
      # First, so that an object in itself ends here.
      finished[id(value)] = None
      finished[id(value)] = _finish(value.value, finished)
    case dict():
      finished[id(value)] = made = {}
      made |= {key: _finish(one, finished) for key, one in value.items()}
    case list() | tuple():
      # A tuple becomes a list: it may hold a list that holds it.
      finished[id(value)] = made = []
      made += [_finish(one, finished) for one in value]
    case _Global() | _Dtype():
      raise RefusedError(f"{_show(value)} as a value")
    case _:
      return value
  return finished[id(value)]

"""A machine as data: what its devices compute and hold, and their links.

A machine is a JSON file; `alexnet_jax/machines/` has some. Every number of it
is an object {"value": 1.5e12, "source": "data sheet, page 2"}. Numbers are in
seconds, bytes and bytes per second, those of a link in one direction.

- Links have levels, innermost first: inside a host, between hosts. A level
  joins units of so many devices into blocks; the outermost joins all.
- Products and what follows them may have been measured on shards of many sizes
  (`bench --what=machine`). Where no measurement is near, the peak and the part
  of it that such layers reach give the time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).parents[1] / "machines"
PLATFORMS = ("cpu", "gpu", "tpu")
# What a link may have measured for each of; the kinds of `plan.Collective`.
COLLECTIVES = ("sum", "all_gather", "reduce_scatter", "all_to_all")
KINDS = ("conv", "fc")
FORWARD, BACKWARD = "forward", "backward"
BY_INPUT, BY_KERNEL = "by input", "by kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A kind of work of a step; see `Measured`."""

  work: tuple[str, ...]
  passes: tuple[str, ...]
  optional: tuple[str, ...] = ()


PARTS: Mapping[str, Part] = {
  # The convolution or product of a layer. A product of the image has no
  # gradient by its input.
  "product": Part(
    work=("multiplications", "kernel", "inputs", "outputs"),
    passes=(FORWARD, BY_KERNEL),
    optional=(BY_INPUT,),
  ),
  # What follows it: activation, normalization, pooling, dropout.
  "rest": Part(work=("values",), passes=(FORWARD, BACKWARD)),
  # Of the parameters, by the optimizer.
  "update": Part(work=("parameters",), passes=(FORWARD,)),
  # Of the images.
  "augmentation": Part(work=("pixels",), passes=(FORWARD,)),
  # Of an array whose dimensions change places, as before and after a collective
  # that is not along the first one.
  "transpose": Part(work=("values",), passes=(FORWARD,)),
  # The random numbers of dropout and stochastic pooling.
  "random": Part(work=("values",), passes=(FORWARD,)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Software:
  """What a collective of one kind costs the devices, on a link of any speed.

  Attributes:
    seconds: of a collective of few bytes, between two devices.
    seconds_per_byte: that a device sends, as `plan.ring_elements` counts, for
      copies, additions and system calls, besides the time on the link.
    overlapped_seconds_per_byte: the same, for those that go on while the link
      is busy with other bytes: the slower of the two sets the pace.
    link_times: how long the link is busy with what a device sends, in times of
      the bytes over its speed: 1, or up to 2 where the two directions do not
      run at once.
  """

  seconds: float
  seconds_per_byte: float = 0.0
  overlapped_seconds_per_byte: float = 0.0
  link_times: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """The links of one level.

  Attributes:
    name: what people call it.
    unit_devices: devices of a unit; 1 at the innermost level.
    joins_devices: devices of a block of joined units; None: all of them.
    bytes_per_second: of one link, in one direction.
    shared_by: devices of a unit that share one link.
    latency_seconds: of a message without content between two devices.
    software: {kind of collective: its costs}, where they were measured.
  """

  name: str
  unit_devices: int
  joins_devices: int | None
  bytes_per_second: float
  shared_by: int
  latency_seconds: float
  software: Mapping[str, Software]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """Seconds of one device's part of a step, measured alone.

  Attributes:
    what: one of `PARTS`.
    geometry: what two of these have in common that differ in sizes only.
    dtype: of the computation.
    work: {one of `PARTS[what].work`: number}, from which the time grows.
    seconds: {one of `PARTS[what].passes`: seconds}.
  """

  what: str
  geometry: str
  dtype: str
  work: Mapping[str, float]
  seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Machine:
  """Devices and links.

  Attributes:
    platform: one of `PLATFORMS`.
    devices: that it has, or that a table of it shows; more may be priced where
      its outermost link joins any number.
    memory_bytes: of one device.
    peak_flops_per_second: {dtype: of one device}.
    utilization: {`conv`, `fc`: part of the peak that a large layer reaches};
      above 1 where an algorithm multiplies less than a convolution has to.
    memory_bytes_per_second: of one device's memory.
    launch_seconds: of a part of a layer that computes nothing.
    links: innermost first.
    measured: of parts of layers.
    sources: {place of a number: where it comes from}.
  """

  name: str
  description: str
  platform: str
  devices: int
  memory_bytes: float
  peak_flops_per_second: Mapping[str, float]
  utilization: Mapping[str, float]
  memory_bytes_per_second: float
  launch_seconds: float
  links: tuple[Link, ...]
  measured: tuple[Measured, ...] = ()
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def with_hosts(self, hosts: int, per_host: int) -> Machine:
    """Returns the machine with so many hosts of so many devices each.

    Raises:
      ValueError: its links say nothing about that.
    """
    if len(self.links) < 2:
      raise ValueError(
        f"machine {self.name} has one level of links, {self.links[0].name}, "
        f"expected one inside a host and one between hosts for {hosts}x"
        f"{per_host} devices. Set --machine, or leave --hosts out."
      )
    *inner, host, between = self.links
    if host.joins_devices is not None and per_host > host.joins_devices:
      raise ValueError(
        f"{per_host} devices in a host are more than the {host.joins_devices} "
        f"that {host.name} joins in machine {self.name}. Set --hosts."
      )
    # One link for all devices of a host, or the same number of them for each.
    shared_by = math.gcd(between.shared_by, per_host)
    if between.shared_by == between.unit_devices:
      shared_by = per_host
    return dataclasses.replace(
      self,
      devices=hosts * per_host,
      links=(
        *inner,
        dataclasses.replace(host, joins_devices=per_host),
        dataclasses.replace(
          between,
          unit_devices=per_host,
          shared_by=shared_by,
        ),
      ),
    )

  def find_links(self, devices: int) -> tuple[Link, ...]:
    """Returns the levels of links that so many devices use; () for one."""
    return tuple(one for one in self.links if devices > one.unit_devices)

  def scale_link(self, name: str, factor: float) -> Machine:
    """Returns the machine with one level's links faster by a factor."""
    links = tuple(
      dataclasses.replace(link, bytes_per_second=factor * link.bytes_per_second)
      if link.name == name
      else link
      for link in self.links
    )
    return dataclasses.replace(self, links=links)

  def check_devices(self, devices: int) -> None:
    """Refuses a number of devices that the links do not join.

    Raises:
      ValueError: names the number and the level.
    """
    for link in self.links:
      most = link.joins_devices
      if most is None or devices <= most:
        return
      if devices % most:
        raise ValueError(
          f"{devices} devices do not fill blocks of {most}, which {link.name} "
          f"joins in machine {self.name}. Set --devices to a multiple of "
          f"{most}, or --hosts."
        )
    raise ValueError(
      f"machine {self.name} joins {self.links[-1].joins_devices} devices at "
      f"most, and {devices} were asked for. Set --devices or --machine."
    )


def names() -> list[str]:
  """Returns the names of the machines that come with the package."""
  return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Machine:
  """Loads a machine of the package by name, or any from a file.

  Args:
    name: one of `names()`, or the path of a JSON file.

  Raises:
    ValueError: there is none, or it is wrong or incomplete; names the field.
    OSError: it cannot be read.
  """
  path = FOLDER / f"{name}.json"
  if not path.exists():
    path = pathlib.Path(name)
    if path.suffix != ".json":
      raise ValueError(
        f"unknown machine {name!r}, expected a file of its own that ends in "
        f".json, or one of {', '.join(names())}. Set --machine."
      )
  try:
    data = json.loads(path.read_text())
  except FileNotFoundError:
    raise ValueError(
      f"there is no machine file {name}. Write one with: python -m "
      f"alexnet_jax.bench --what=machine --json={name}"
    ) from None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(
      f"machine file {name} is no JSON: {error}. Write it again, or set "
      "--machine."
    ) from error
  return from_json(data, name=str(path))


def from_json(data: Any, *, name: str) -> Machine:
  """Makes a machine from what its file has; see `load`.

  Args:
    name: of the file, for errors.
  """
  sources: dict[str, str] = {}
  top = _Fields(data, name, "", sources)
  compute = top.group("compute")
  machine = Machine(
    name=top.text("name"),
    description=top.text("description"),
    platform=top.text("platform", PLATFORMS),
    devices=top.count("devices"),
    memory_bytes=top.number("memory_bytes"),
    peak_flops_per_second=compute.numbers("peak_flops_per_second"),
    utilization=compute.numbers("utilization", KINDS),
    memory_bytes_per_second=compute.number("memory_bytes_per_second"),
    launch_seconds=compute.number("launch_seconds", zero=True),
    links=tuple(map(_to_link, top.groups("links"))),
    measured=tuple(map(_to_measured, top.groups("measured", optional=True))),
    sources=types.MappingProxyType(sources),
  )
  compute.check_all_read()
  top.check_all_read()
  _check_links(machine, name)
  return machine


def _to_link(fields: _Fields) -> Link:
  software = {}
  if fields.has("software"):
    group = fields.group("software")
    for kind in group.names():
      costs = group.group(kind, COLLECTIVES)
      software[kind] = Software(
        seconds=costs.number("seconds", zero=True),
        seconds_per_byte=costs.number("seconds_per_byte", zero=True),
        overlapped_seconds_per_byte=costs.number(
          "overlapped_seconds_per_byte", zero=True, missing=0.0
        ),
        link_times=costs.number("link_times"),
      )
      costs.check_all_read()
  link = Link(
    name=fields.text("name"),
    unit_devices=fields.count("unit_devices"),
    joins_devices=fields.count("joins_devices", none=True),
    bytes_per_second=fields.number("bytes_per_second"),
    shared_by=fields.count("shared_by"),
    latency_seconds=fields.number("latency_seconds", zero=True),
    software=software,
  )
  fields.check_all_read()
  return link


def _to_measured(fields: _Fields) -> Measured:
  what = fields.text("what", tuple(PARTS))
  part = PARTS[what]
  measured = Measured(
    what=what,
    geometry=fields.text("geometry"),
    dtype=fields.text("dtype"),
    work=fields.plain_numbers("work", part.work),
    seconds=fields.plain_numbers("seconds", part.passes, part.optional),
  )
  fields.check_all_read()
  return measured


def _check_links(machine: Machine, name: str) -> None:
  """Refuses levels that do not fit into each other."""
  unit = 1
  for index, link in enumerate(machine.links):
    if link.unit_devices != unit:
      raise ValueError(
        f"machine file {name}: links[{index}].unit_devices is "
        f"{link.unit_devices}, expected {unit}, the devices that the level "
        "before it joins (1 at the first)."
      )
    joins = link.joins_devices
    is_last = index == len(machine.links) - 1
    if joins is None and not is_last:
      expected = "a number at every level but the last"
    elif joins is not None and (joins % unit or (joins <= unit and unit > 1)):
      expected = f"a multiple of unit_devices, {unit}"
    elif unit % link.shared_by:
      raise ValueError(
        f"machine file {name}: links[{index}].shared_by is {link.shared_by}, "
        f"expected a divisor of unit_devices, {unit}."
      )
    else:
      unit = joins or unit
      continue
    raise ValueError(
      f"machine file {name}: links[{index}].joins_devices is {joins}, expected "
      f"{expected}."
    )
  if not machine.links:
    raise ValueError(
      f"machine file {name}: links is empty, expected one level or more."
    )


class _Fields:
  """Reads fields of a JSON object, each once, with errors that name them."""

  def __init__(self, data: Any, file: str, place: str, sources: dict[str, str]):
    self._file, self._place, self._sources = file, place, sources
    if not isinstance(data, dict):
      raise self._error("", data, "an object {...}")
    self._data = data
    self._read: set[str] = set()

  def _error(self, field: str, value: Any, expected: str) -> ValueError:
    place = ".".join(filter(None, (self._place, field))) or "the file"
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return ValueError(
      f"machine file {self._file}: {place} is {text}, expected {expected}."
    )

  def has(self, field: str) -> bool:
    return field in self._data

  def names(self) -> list[str]:
    return list(self._data)

  def _get(self, field: str) -> Any:
    self._read.add(field)
    if field not in self._data:
      place = ".".join(filter(None, (self._place, field)))
      raise ValueError(
        f"machine file {self._file} lacks {place}. docs/planner.md has the "
        "format."
      )
    return self._data[field]

  def text(self, field: str, allowed: Sequence[str] = ()) -> str:
    value = self._get(field)
    if not isinstance(value, str) or (allowed and value not in allowed):
      raise self._error(field, value, " or ".join(allowed) or "a text")
    return value

  def count(self, field: str, *, none: bool = False) -> int | None:
    value = self._get(field)
    if value is None and none:
      return None
    if type(value) is not int or value < 1:
      raise self._error(field, value, "an integer >= 1")
    return value

  def number(
    self, field: str, *, zero: bool = False, missing: float | None = None
  ) -> float:
    """Reads {"value": number, "source": text}; `missing` if there is none."""
    if missing is not None and not self.has(field):
      return missing
    value = self._get(field)
    expected = '{"value": number, "source": text}'
    if not isinstance(value, dict) or set(value) != {"value", "source"}:
      raise self._error(field, value, expected)
    if not isinstance(value["source"], str) or not value["source"].strip():
      raise self._error(f"{field}.source", value["source"], "a text")
    self._sources[f"{self._place}.{field}".lstrip(".")] = value["source"]
    return self._plain(f"{field}.value", value["value"], zero=zero)

  def _plain(self, field: str, value: Any, *, zero: bool = False) -> float:
    is_number = type(value) in (int, float) and math.isfinite(value)
    if not is_number or value < 0 or (value == 0 and not zero):
      least = ">= 0" if zero else "> 0"
      raise self._error(field, value, f"a number {least}")
    return float(value)

  def numbers(
    self, field: str, wanted: Sequence[str] = ()
  ) -> Mapping[str, float]:
    """Reads an object of numbers with sources: `wanted`, or one or more."""
    group = self._group_of(field, wanted)
    return {name: group.number(name) for name in group.names()}

  def plain_numbers(
    self, field: str, wanted: Sequence[str], optional: Sequence[str] = ()
  ) -> Mapping[str, float]:
    """Reads an object of numbers without sources."""
    group = self._group_of(field, wanted, optional)
    return {
      name: group._plain(name, group._get(name), zero=True)
      for name in group.names()
    }

  def _group_of(
    self, field: str, wanted: Sequence[str], optional: Sequence[str] = ()
  ) -> _Fields:
    group = self.group(field)
    names, allowed = set(group.names()), {*wanted, *optional}
    if (
      not names or not names >= set(wanted) or (wanted and not names <= allowed)
    ):
      expected = ", ".join((*wanted, *optional)) or "one or more names"
      raise self._error(field, self._data[field], f"numbers for {expected}")
    return group

  def group(self, field: str, allowed: Sequence[str] = ()) -> _Fields:
    if allowed and field not in allowed:
      raise self._error(field, field, " or ".join(allowed))
    place = ".".join(filter(None, (self._place, field)))
    return _Fields(self._get(field), self._file, place, self._sources)

  def groups(self, field: str, *, optional: bool = False) -> list[_Fields]:
    if optional and field not in self._data:
      return []
    values = self._get(field)
    if not isinstance(values, list):
      raise self._error(field, values, "a list")
    place = ".".join(filter(None, (self._place, field)))
    return [
      _Fields(value, self._file, f"{place}[{index}]", self._sources)
      for index, value in enumerate(values)
    ]

  def check_all_read(self) -> None:
    """Refuses a field that nothing reads: a misspelt one."""
    for field in self._data:
      if field not in self._read:
        place = ".".join(filter(None, (self._place, field)))
        expected = ", ".join(sorted(self._read))
        raise ValueError(
          f"machine file {self._file} has a field {place}, expected one of "
          f"{expected}."
        )

import copy
import json

import pytest

from alexnet_jax.planner import machine as machine_lib

WITH_SOURCE = {"value": 1.0, "source": "a test"}


def make_data():
  data = json.loads((machine_lib.FOLDER / "h100_2x4.json").read_text())
  data["measured"] = [
    {
      "what": "rest",
      "geometry": "fc relu",
      "dtype": "float32",
      "work": {"values": 10},
      "seconds": {"forward": 1e-5, "backward": 1e-5},
    }
  ]
  return data


@pytest.mark.parametrize("name", machine_lib.names())
def test_machines_of_the_package_load_and_have_sources(name):
  machine = machine_lib.load(name)
  assert machine.name == name
  assert machine.devices >= 1
  assert all(len(source) > 10 for source in machine.sources.values())
  machine.check_devices(machine.devices)


def test_machines_load_as_they_are_written():
  machine = machine_lib.from_json(make_data(), name="mine.json")
  assert machine.measured[0].seconds == {"forward": 1e-5, "backward": 1e-5}
  assert machine.links[1].shared_by == 4


def test_costs_of_a_collective_load_with_and_without_those_that_overlap():
  data = make_data()
  costs = {
    name: {"value": value, "source": "measured"}
    for name, value in (
      ("seconds", 1e-4),
      ("seconds_per_byte", 0),
      ("link_times", 1.5),
    )
  }
  overlaps = {"overlapped_seconds_per_byte": {"value": 2e-9, "source": "same"}}
  data["links"][1]["software"] = {"sum": costs, "all_gather": costs | overlaps}
  software = machine_lib.from_json(data, name="mine.json").links[1].software
  assert software["sum"] == machine_lib.Software(seconds=1e-4, link_times=1.5)
  assert software["all_gather"].overlapped_seconds_per_byte == 2e-9


def set_field(data, path, value):
  *groups, last = path
  for name in groups:
    data = data[name]
  data[last] = value


WRONG = {
  "a number without source": (
    ("memory_bytes",),
    8e10,
    r"memory_bytes is 80000000000.0, expected {\"value\": number, \"source\"",
  ),
  "no source": (
    ("memory_bytes",),
    {"value": 8e10, "source": ""},
    "memory_bytes.source is '', expected a text",
  ),
  "a negative speed": (
    ("links", 0, "bytes_per_second"),
    {"value": -1, "source": "x"},
    r"links\[0\].bytes_per_second.value is -1, expected a number > 0",
  ),
  "a text for a number": (
    ("compute", "launch_seconds"),
    {"value": "fast", "source": "x"},
    "compute.launch_seconds.value is 'fast', expected a number >= 0",
  ),
  "a platform": (("platform",), "abacus", "platform is 'abacus', expected cpu"),
  "a misspelt field": (("memory",), 1, "has a field memory, expected one of"),
  "levels": (
    ("links", 1, "unit_devices"),
    2,
    r"links\[1\].unit_devices is 2, expected 4",
  ),
  "sharing": (
    ("links", 1, "shared_by"),
    3,
    r"links\[1\].shared_by is 3, expected a divisor of unit_devices, 4",
  ),
  "inner level joins all": (
    ("links", 0, "joins_devices"),
    None,
    r"links\[0\].joins_devices is None, expected a number at every level but",
  ),
  "no links": (("links",), [], "links is empty, expected one level or more"),
  "a part": (
    ("measured", 0, "what"),
    "soul",
    r"measured\[0\].what is 'soul', expected product or rest",
  ),
  "work": (
    ("measured", 0, "work"),
    {"pixels": 1},
    r"measured\[0\].work is .*, expected numbers for values",
  ),
  "a kind of collective": (
    ("links", 0, "software"),
    {"broadcast": WITH_SOURCE},
    "links.0..software.broadcast is 'broadcast', expected sum or all_gather",
  ),
  "a list": (("links",), {}, "links is {}, expected a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_file_names_the_field(name):
  path, value, message = WRONG[name]
  data = copy.deepcopy(make_data())
  set_field(data, path, value)
  with pytest.raises(ValueError, match=message) as caught:
    machine_lib.from_json(data, name="mine.json")
  assert "\n" not in str(caught.value) and "mine.json" in str(caught.value)


@pytest.mark.parametrize(
  "path", [("links",), ("compute", "utilization"), ("devices",)]
)
def test_missing_field_is_named(path):
  data = make_data()
  group = data
  for name in path[:-1]:
    group = group[name]
  del group[path[-1]]
  with pytest.raises(ValueError, match=f"lacks {'.'.join(path)}. docs/planner"):
    machine_lib.from_json(data, name="mine.json")


def test_file_that_is_no_json_is_refused(tmp_path):
  file = tmp_path / "mine.json"
  file.write_text('{"name": ')
  with pytest.raises(ValueError, match="is no JSON: .*Write it again"):
    machine_lib.load(str(file))
  file.write_text("[1]")
  with pytest.raises(ValueError, match="the file is .1., expected an object"):
    machine_lib.load(str(file))


def test_devices_that_links_do_not_join_are_refused():
  machine = machine_lib.load("dgx_h100")
  machine.check_devices(3)
  machine.check_devices(24)
  with pytest.raises(ValueError, match="12 devices do not fill blocks of 8"):
    machine.check_devices(12)

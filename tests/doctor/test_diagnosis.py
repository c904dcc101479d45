"""Problems that follow from the facts of the processes."""

import pytest

from alexnet_jax.distributed import group, machine
from alexnet_jax.doctor import diagnosis
from tests import fake_group


def process(**changed):
  """What a process says of itself."""
  facts = {"host": "a", "address": "10.0.0.1", "machine": "1"}
  facts |= {"kind": "cpu", "platform": "cpu", "memory_free": 2**30}
  return facts | changed


@pytest.mark.parametrize(
  ("said", "expected"),
  [
    ([None] * 4, []),
    (["x"] * 4, ["every process: x"]),
    ([None, "x", None, None], ["process 1 of 4 (b): x"]),
    ([*"xyxx"], ["processes 0, 2-3 of 4: x", "process 1 of 4 (b): y"]),
    (["x"], ["x"]),
  ],
)
def test_lines_name_the_processes_that_say_the_same(said, expected):
  groups = fake_group.make_groups(*"abcd")
  first = groups[0] if len(said) == 4 else group.alone()
  assert diagnosis.merge_equal_lines(first, said) == expected


def test_versions_that_differ_are_named():
  first = {"python": "3.11.7", "jaxlib": "0.10.2", "numpy": "2.4"}
  second = {"python": "3.12.1", "jaxlib": "0.10.1", "numpy": "2.4"}
  groups = fake_group.make_groups("a", "b")
  (line,) = diagnosis.find_differing_versions(groups[0], [first, second])
  said = "process 1 of 2 (b): jaxlib 0.10.1, process 0 has 0.10.2. Install"
  assert line.startswith(said)


def test_host_whose_name_leads_to_itself_is_no_use_to_others():
  groups = fake_group.make_groups("a", "b", "c")
  addresses = {"a": "10.0.0.1", "b": "127.0.1.1", "c": ""}
  said = [process(host=x, address=addresses[x]) for x in addresses]
  first, second = diagnosis.find_unreachable_hosts(groups[0], said)
  name = "process 1 of 3 (b): its host name 'b' resolves to 127.0.1.1, which"
  assert first.startswith(name) and "/etc/hosts" in first
  assert "'c' has no address" in second
  # On one host, and between accelerators, that is no matter.
  same = [process(address="127.0.0.1")] * 3
  assert not diagnosis.find_unreachable_hosts(groups[0], same)
  gpus = [facts | {"platform": "gpu"} for facts in said]
  assert not diagnosis.find_unreachable_hosts(groups[0], gpus)


def test_machines_of_one_name_are_told_apart():
  said = [process(address="127.0.1.1", machine=number) for number in ("1", "2")]
  groups = fake_group.make_groups("a", "a")
  (line,) = diagnosis.find_unreachable_hosts(groups[0], said)
  assert line.startswith("every process: its host name 'a'")


def test_processes_with_other_devices_are_named():
  said = [process(kind="H200"), process(kind="A100")]
  groups = fake_group.make_groups("a", "b")
  (line,) = diagnosis.find_differing_devices(groups[0], said)
  assert "process 1 of 2 (b): its devices are A100" in line


def test_devices_that_cannot_hold_the_state_are_named():
  groups = fake_group.make_groups("a", "b")
  said = [process(platform="gpu"), process(platform="gpu", host="b")]
  devices = [
    [{"id": 0, "limit": 2**31}, {"id": 1, "limit": None}],
    [{"id": 2, "limit": 2**29}, {"id": 3, "limit": 2**28}],
  ]
  assert not diagnosis.find_memory_shortage(groups[0], said, devices, 2**28)
  (line,) = diagnosis.find_memory_shortage(groups[0], said, devices, 2**30)
  assert line.startswith(
    "process 1 of 2 (b): device 2-3 may use 256.0 MiB, but parameters, "
    "optimizer and batches take 1.0 GiB of it."
  )
  assert "config.batch_size" in line


def test_simulated_devices_share_the_memory_of_their_host():
  groups = fake_group.make_groups("a", "a", "b")
  said = [process(), process(), process(host="b")]
  devices = [[{"id": i, "limit": None}] * 2 for i in range(3)]
  held = 2**29 - 2**20  # four times on host a, twice on b, which have 1 GiB
  (line,) = diagnosis.find_memory_shortage(groups[0], said, devices, held)
  assert line.startswith("host a: 1.0 GiB of memory are free")
  assert "its 4 devices take 2.0 GiB" in line


@pytest.mark.parametrize(
  ("count", "expected"),
  [
    (None, "-"),
    (0, "0 bytes"),
    (1023, "1,023 bytes"),
    (1536, "1.5 KiB"),
    (3 * 2**40, "3.0 TiB"),
    (2**60, "1,048,576.0 TiB"),
  ],
)
def test_sizes_in_words(count, expected):
  assert machine.format_bytes(count) == expected

"""Devices that are not there: what JAX says of one, and nothing behind it."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  process_index: int = 0
  platform: str = "cpu"
  device_kind: str = "cpu"


@dataclasses.dataclass(frozen=True)
class DeviceOfSlice(Device):
  slice_index: int = 0


def make_devices(processes: int, each: int) -> list[Device]:
  """Devices of several processes, as JAX counts them."""
  return [
    Device(process * each + number, process)
    for process in range(processes)
    for number in range(each)
  ]


def find_ids(mesh) -> list:
  """The numbers of a mesh's devices, nested as its axes are."""
  return np.vectorize(lambda device: device.id)(mesh.devices).tolist()

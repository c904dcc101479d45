"""The devices of a TPU slice that is not there, to compile for.

Programs can be compiled for them, not run. Needs the libtpu wheel that fits
the installed jaxlib (requirements-tpu.txt), and no TPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

GENERATIONS = ("v4", "v5e", "v5p", "v6e")

# libtpu asks the machine that it runs on which slice it belongs to; here it
# belongs to none.
_NOT_ON_A_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Several commands at once: nothing is opened that they would share.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find_devices(name: str) -> Sequence[jax.Device]:
  """The devices of a slice.

  Args:
    name: generation and chips along each dimension, as `v5e:2x4` or
      `v5p:4x4x4`.

  Returns:
    The devices; they compile and do not run.

  Raises:
    ValueError: there is no such slice.
    ImportError: libtpu is not installed.
  """
  generation, _, chips = name.partition(":")
  dimensions = 3 if generation in ("v4", "v5p") else 2
  shape = r"x".join([r"[1-9]\d*"] * dimensions)
  if generation not in GENERATIONS or not re.fullmatch(shape, chips):
    raise ValueError(
      f"unknown topology {name!r}, expected a generation of "
      f"{', '.join(GENERATIONS)} and its chips, as v5e:2x4 or v5p:2x2x2. "
      "Set --topology."
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError(
      f"compiling for {name} needs the libtpu wheel, which is not installed. "
      "Run: python -m pip install -r requirements-tpu.txt"
    )
  for variable, value in _NOT_ON_A_TPU.items():
    os.environ.setdefault(variable, value)
  # A chip of v4 is two cores, which JAX uses as one device.
  options = {"chip_config_name": "megacore"} if generation == "v4" else {}
  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"libtpu knows no slice {name!r}: {error}. Set --topology."
    ) from error

"""Verifies every layout of the catalog against its plan and one device.

    python -m alexnet_jax.verify --config=configs/one_device.py

On the meshes of 1, 2, 4 and 8 simulated devices that a layout allows, without
those on which a device sends, computes and holds the same as on another one,
and in float64: the traced step has the plan's exchanges and no others, the
compiled one sends nothing unplanned, and the losses, gradients and parameters
of five steps, with dropout and augmentation, are those of one device. In
float32, nearly equal values in a pooling window would amplify the rounding of
sums in another order. Exits with 1 if any of this fails. The images are noise,
so it needs no data.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np
import optax
from absl import app

from alexnet_jax.cli import command
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, per_device
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

STEPS = 5
# Relative; for float64 sums in another order, carried through the steps.
TOLERANCE = 1e-8

_CONFIG = command.define_config("configs/one_device.py")
_LAYOUTS = command.define_list(
  "layouts", [], "Names of layouts. Default: the catalog and the config's."
)
_DEVICES = command.define_list(
  "devices", ["1", "2", "4", "8"], "Numbers of devices to simulate."
)

_HEADERS = ("layout", "mesh", "exchanges", "planned", "traced", "compiled")
_HEADERS += ("loss", "gradients", "weights", "promises")
_ROW = "{:<{}} {:<{}} {:>9} {:>12} {:>12} {:>12} {:>8} {:>9} {:>8}  {}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
  """Losses f64[STEPS], first gradients, and last parameters of some steps."""

  losses: np.ndarray
  gradients: dict
  parameters: dict


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  with command.exit_on_error(ValueError, TypeError, OSError):
    network, layout = settings.check(config)
    settings.check_single(config, command="verify")
    # Or some of the few steps, or all of them, would change nothing.
    config.optimizer.warmup_epochs = 0.0
    config.grad_accumulation_steps = 1
    layouts = settings.choose_layouts(layout, _LAYOUTS.value)
    counts = command.parse_counts(
      "devices", _DEVICES.value, most=command.MAX_SIMULATED_DEVICES
    )
    for name in ("exchange_dtype", "compute_dtype"):
      if config[name] != "float32":
        raise ValueError(
          f"{name} is {config[name]!r}, which changes results, expected "
          f"'float32' to compare layouts. Set config.{name}."
        )
    config.compute_dtype = "float64"
    mesh_lib.simulate_devices(max(counts), only_cpu=True)
    all_agree = verify(config, network, layouts, counts)
  sys.exit(0 if all_agree else 1)


def verify(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  layouts: Sequence[layout_lib.Layout],
  counts: Sequence[int],
) -> bool:
  """Prints a line for each layout and mesh; returns whether all agree.

  Of layouts and meshes that come to the same, it takes one.

  Raises:
    ValueError: no layout fits.
  """
  candidates = [
    candidate
    for layout, count in itertools.product(layouts, counts)
    for candidate in per_device.find_fitting(
      network, layout, count, batch_size=config.batch_size
    )
  ]
  if not candidates:
    raise ValueError(
      f"none of the layouts {', '.join(layout.name for layout in layouts)} "
      f"fits {network.name}, {', '.join(map(str, counts))} devices and a batch "
      f"of {config.batch_size}. Set --layouts, --devices or config.batch_size."
    )
  fitting = len(candidates)
  candidates = per_device.find_distinct(
    network,
    candidates,
    batch_size=config.batch_size,
    norms=config.optimizer.trust_coefficient is not None,
  )
  names = max(len(layout.name) for layout in candidates)
  meshes = max(len(layout_lib.format_mesh(one.mesh)) for one in candidates)
  one_device = run_lib.make_program(config, network, catalog.ONE_DEVICE)
  n, side = config.batch_size, config.data.stored_size
  rng = np.random.default_rng(config.seed)
  batch = (
    rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
    rng.integers(0, config.network.num_classes, n, dtype=np.int32),
  )
  compiled, _ = compiled_step.compile_step(one_device)
  expected = take_steps(one_device, compiled, batch)
  print(
    f"network {network.name}, batch {n}, in float64: bytes that one device "
    f"sends in a step, twice those of float32, and the largest relative "
    f"difference from one_device after {STEPS} steps (up to {TOLERANCE:g} is "
    "rounding)"
  )
  print(_ROW.format(_HEADERS[0], names, _HEADERS[1], meshes, *_HEADERS[2:]))
  all_agree = True
  for layout in candidates:
    program = run_lib.make_program(config, network, layout)
    compiled, audit = compiled_step.compile_step(program)
    steps = take_steps(program, compiled, batch)
    differences = find_differences(steps, expected)
    agrees = audit.agrees and max(differences) <= TOLERANCE
    all_agree = all_agree and agrees
    sent = [
      sum(exchange.sent_bytes for exchange in exchanges)
      for exchanges in (audit.plan, audit.traced, audit.compiled)
    ]
    print(
      _ROW.format(
        *(layout.name, names, layout_lib.format_mesh(layout.mesh), meshes),
        len(audit.plan),
        *(f"{number:,}" for number in sent),
        *(f"{difference:.1e}" for difference in differences),
        "kept" if agrees else "BROKEN",
      ),
      flush=True,
    )
    for line in audit.unplanned + audit.missing + audit.notes:
      print(f"    {line}")
  if skipped := fitting - len(candidates):
    print(
      f"left out: {skipped} more layouts and meshes, on which a device sends, "
      "computes and holds the same as on one of these"
    )
  return all_agree


def take_steps(
  program: program_lib.Program,
  compiled: jax.stages.Compiled,
  batch: tuple[np.ndarray, np.ndarray],
) -> Steps:
  """Takes some training steps on one batch."""
  init_key, step_key = jax.random.split(jax.random.key(0))
  state = program.init(init_key)
  images, labels = jax.device_put(batch, program.batch_shardings)
  losses = []  # sums over the batch
  for step in range(STEPS):
    state, totals = compiled(state, step_key, images, labels)
    losses.append(float(totals[0]))
    if step == 0:  # the first velocity is the gradient
      gradients = jax.device_get(optax.tree.get(state.optimizer, "trace"))
  return Steps(
    losses=np.array(losses),
    gradients=gradients,
    parameters=jax.device_get(state.parameters),
  )


def find_differences(
  steps: Steps, expected: Steps
) -> tuple[float, float, float]:
  """Finds the largest relative differences: losses, gradients, parameters."""

  def difference(a, b) -> float:
    if np.array_equal(a, b):
      return 0.0
    relative = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
    return float(relative) if np.isfinite(relative) else math.inf

  def arrays(layers) -> Iterator[np.ndarray]:
    """Yields each array, but those of a batch normalization's layer as one.

    The next normalization removes some shifts: their gradient is only rounding.
    """
    for of_layer in layers.values():
      if "scale" in of_layer:
        yield np.concatenate([array.ravel() for array in of_layer.values()])
      else:
        yield from of_layer.values()

  def largest(a, b) -> float:
    return max(map(difference, arrays(a), arrays(b)))

  return (
    max(map(difference, steps.losses, expected.losses)),
    largest(steps.gradients, expected.gradients),
    largest(steps.parameters, expected.parameters),
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

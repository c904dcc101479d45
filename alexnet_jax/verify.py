"""Holds every layout of the catalogue to what it promises.

    python -m alexnet_jax.verify --config=configs/one_device.py

On every mesh of 1, 2, 4 and 8 simulated devices that a layout allows: the
traced step has the plan's exchanges and no others, the compiled one sends
nothing unplanned, and the losses, gradients and parameters of five steps,
dropout and augmentation on, are those of one device. Ends with 1 where a
promise is broken. Images are noise, so it needs no data.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np
import optax
from absl import app, flags

from alexnet_jax import command
from alexnet_jax import program as program_lib
from alexnet_jax import run as run_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib

STEPS = 5
# Sums in another order, in float32, carried through the steps.
TOLERANCE = 1e-5

_CONFIG = command.define_config("configs/one_device.py")
_LAYOUTS = flags.DEFINE_list(
  "layouts", [], "Names of layouts. Default: the whole catalogue."
)
_DEVICES = flags.DEFINE_list(
  "devices", ["1", "2", "4", "8"], "Numbers of devices to simulate."
)

_NAMES = [layout.name for layout in catalog.LAYOUTS]
_HEADERS = ("layout", "mesh", "exchanges", "planned", "traced", "compiled")
_HEADERS += ("loss", "gradients", "weights", "promises")
_ROW = "{:<18} {:<16} {:>9} {:>12} {:>12} {:>12} {:>8} {:>9} {:>8}  {}"


@dataclasses.dataclass(frozen=True)
class Steps:
  """What some steps came to.

  Attributes:
    losses: f32[STEPS], sums over the batch.
    gradients: of the first step, by way of the velocity.
    parameters: after the last step.
  """

  losses: np.ndarray
  gradients: dict
  parameters: dict


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  with command.in_one_line(ValueError, TypeError):
    network, _ = run_lib.check(config)
    layouts = [catalog.find(name) for name in _LAYOUTS.value or _NAMES]
    counts = command.to_numbers("devices", _DEVICES.value)
    mesh_lib.simulate_devices(max(counts), only_cpu=True)
    kept = verify(config, network, layouts, counts)
  sys.exit(0 if kept else 1)


def verify(config, network, layouts, counts) -> bool:
  """Prints a line for each layout and mesh; whether all promises are kept."""
  print(
    f"network {network.name}, batch {config.batch_size}: bytes that one device "
    f"sends in a step, and the largest relative difference from one_device "
    f"after {STEPS} steps (up to {TOLERANCE:g} is rounding)"
  )
  print(_ROW.format(*_HEADERS))
  batch = make_noise(config)
  expected = None
  all_kept = True
  for layout in allowed(network, layouts, counts, config.batch_size):
    program = run_lib.make_program(config, network, layout)
    compiled, audit = program_lib.compile_step(program)
    steps = take_steps(program, compiled, batch)
    expected = expected or steps
    differences = differ(steps, expected)
    kept = audit.agrees and max(differences) <= TOLERANCE
    all_kept = all_kept and kept
    sent = [
      sum(exchange.sent_bytes for exchange in exchanges)
      for exchanges in (audit.plan, audit.traced, audit.compiled)
    ]
    print(
      _ROW.format(
        layout.name,
        " ".join(f"{axis}={size}" for axis, size in layout.mesh.items()),
        len(audit.plan),
        *(f"{number:,}" for number in sent),
        *(f"{difference:.1e}" for difference in differences),
        "kept" if kept else "BROKEN",
      ),
      flush=True,
    )
    for line in audit.unplanned + audit.missing + audit.notes:
      print(f"    {line}")
    if max(differences) > TOLERANCE >= differences[1]:
      print(
        "    The first gradients agree. A near tie in a pooling window or at "
        "the zero of a ReLU,\n    decided by rounding, does this with some "
        "batches of noise: try another config.seed."
      )
  return all_kept


def allowed(
  network: wiring.Network,
  layouts: Sequence[layout_lib.Layout],
  counts: Sequence[int],
  batch_size: int,
) -> Iterator[layout_lib.Layout]:
  """Yields one device, then every layout on every mesh that it allows."""
  yield catalog.ONE_DEVICE
  for layout in layouts:
    for count in counts:
      for candidate in layout_lib.find_meshes(layout, count):
        if candidate != catalog.ONE_DEVICE and candidate.fits(
          network, batch_size=batch_size
        ):
          yield candidate


def make_noise(
  config: ml_collections.ConfigDict,
) -> tuple[np.ndarray, np.ndarray]:
  """A batch of noise: u8[N, side, side, 3], and labels i32[N]."""
  rng = np.random.default_rng(config.seed)
  n, side = config.batch_size, config.data.stored_size
  images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
  labels = rng.integers(0, config.network.num_classes, n, dtype=np.int32)
  return images, labels


def take_steps(
  program: program_lib.Program, compiled: jax.stages.Compiled, batch
) -> Steps:
  """Takes some training steps on one batch."""
  init_key, step_key = jax.random.split(jax.random.key(0))
  state = program.init(init_key)
  images, labels = jax.device_put(batch, program.batch_shardings)
  losses, gradients = [], None
  for _ in range(STEPS):
    state, totals = compiled(state, step_key, images, labels)
    losses.append(float(totals[0]))
    if gradients is None:
      gradients = jax.device_get(optax.tree.get(state.optimizer, "trace"))
  return Steps(np.array(losses), gradients, jax.device_get(state.parameters))


def differ(steps: Steps, expected: Steps) -> tuple[float, float, float]:
  """Largest relative differences: losses, gradients, parameters."""

  def distance(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))

  def largest(a, b) -> float:
    return max(jax.tree.leaves(jax.tree.map(distance, a, b)))

  return (
    float(np.max(np.abs(steps.losses / expected.losses - 1))),
    largest(steps.gradients, expected.gradients),
    largest(steps.parameters, expected.parameters),
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

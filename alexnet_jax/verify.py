"""Holds every layout of the catalog to what it promises.

    python -m alexnet_jax.verify --config=configs/one_device.py

On every mesh of 1, 2, 4 and 8 simulated devices that a layout allows: the
traced step has the plan's exchanges and no others, the compiled one sends
nothing unplanned, and the losses, gradients and parameters of five steps,
dropout and augmentation on, are those of one device. Ends with 1 where a
promise is broken. Images are noise, so it needs no data.
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
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, check
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

STEPS = 5
# Of one device with rounded weights, to see whether a batch has near ties; a
# tie that was looked at showed in three of ten.
TRIALS = 20
# Sums in another order, in float32, carried through the steps.
TOLERANCE = 1e-5

_CONFIG = command.define_config("configs/one_device.py")
_LAYOUTS = flags.DEFINE_list(
  "layouts", [], "Names of layouts. Default: the catalog and the config's."
)
_DEVICES = flags.DEFINE_list(
  "devices", ["1", "2", "4", "8"], "Numbers of devices to simulate."
)

_HEADERS = ("layout", "mesh", "exchanges", "planned", "traced", "compiled")
_HEADERS += ("loss", "gradients", "weights", "promises")
_ROW = "{:<18} {:<16} {:>9} {:>12} {:>12} {:>12} {:>8} {:>9} {:>8}  {}"


@dataclasses.dataclass(frozen=True, kw_only=True)
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
  with command.in_one_line(ValueError, TypeError, OSError):
    network, own = settings.check(config)
    settings.check_single(config, command="verify")
    # Else the first of few steps, or all of them, would change nothing.
    config.optimizer.warmup_epochs = 0.0
    config.grad_accumulation_steps = 1
    layouts = settings.choose_layouts(own, _LAYOUTS.value)
    counts = command.to_numbers(
      "devices", _DEVICES.value, most=command.MOST_SIMULATED
    )
    for name in ("exchange_dtype", "compute_dtype"):
      if config[name] != "float32":
        raise ValueError(
          f"{name} is {config[name]!r}, which changes results; layouts are "
          f"compared in 'float32'. Set config.{name}."
        )
    mesh_lib.simulate_devices(max(counts), only_cpu=True)
    kept = verify(config, network, layouts, counts)
  sys.exit(0 if kept else 1)


def verify(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  layouts: Sequence[layout_lib.Layout],
  counts: Sequence[int],
) -> bool:
  """Prints a line for each layout and mesh; whether all promises are kept.

  Raises:
    ValueError: no layout fits, or no batch is free of near ties.
  """
  candidates = list(allowed(network, layouts, counts, config.batch_size))
  if not candidates:
    raise ValueError(
      f"none of the layouts {', '.join(layout.name for layout in layouts)} "
      f"fits {network.name}, {', '.join(map(str, counts))} devices and a batch "
      f"of {config.batch_size}. Set --layouts, --devices or config.batch_size."
    )
  one_device = run_lib.make_program(config, network, catalog.ONE_DEVICE)
  seed, batch, expected = find_batch(config, one_device)
  print(
    f"network {network.name}, batch {config.batch_size}, seed {seed}: bytes "
    f"that one device sends in a step, and the largest relative difference "
    f"from one_device after {STEPS} steps (up to {TOLERANCE:g} is rounding)"
  )
  print(_ROW.format(*_HEADERS))
  all_kept = True
  for layout in candidates:
    program = run_lib.make_program(config, network, layout)
    compiled, audit = compiled_step.compile_step(program)
    steps = take_steps(program, compiled, batch)
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
        layout_lib.listed(layout.mesh),
        len(audit.plan),
        *(f"{number:,}" for number in sent),
        *(f"{difference:.1e}" for difference in differences),
        "kept" if kept else "BROKEN",
      ),
      flush=True,
    )
    for line in audit.unplanned + audit.missing + audit.notes:
      print(f"    {line}")
  return all_kept


def allowed(
  network: wiring.Network,
  layouts: Sequence[layout_lib.Layout],
  counts: Sequence[int],
  batch_size: int,
) -> Iterator[layout_lib.Layout]:
  """Yields every layout on every mesh that it allows."""
  for layout, count in itertools.product(layouts, counts):
    for candidate in layout_lib.find_meshes(layout, count):
      if check.fits(candidate, network, batch_size=batch_size):
        yield candidate


def find_batch(
  config: ml_collections.ConfigDict, one_device: program_lib.Program
) -> tuple[int, tuple[np.ndarray, np.ndarray], Steps]:
  """A batch of noise on which rounding stays rounding.

  Near ties in a pooling window, or at the zero of a ReLU, turn a difference of
  1e-7 into one of 1e-3 within a few steps. Such a batch says nothing about a
  layout, and one device alone shows it: its weights, changed by their own
  rounding, lead elsewhere. The first batch without is taken.

  Returns:
    Its seed, from config.seed on; images u8[N, side, side, 3] and labels
    i32[N]; what one device makes of it.

  Raises:
    ValueError: there is none among the first ten seeds.
  """
  compiled, _ = compiled_step.compile_step(one_device)
  n, side = config.batch_size, config.data.stored_size
  for seed in range(config.seed, config.seed + 10):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, config.network.num_classes, n, dtype=np.int32)
    batch = images, labels
    expected = take_steps(one_device, compiled, batch)
    changed = [
      take_steps(one_device, compiled, batch, change=trial)
      for trial in range(1, TRIALS + 1)
    ]
    if all(max(differ(steps, expected)) <= TOLERANCE for steps in changed):
      return seed, batch, expected
  raise ValueError(
    f"the batches of seeds {config.seed} to {seed} all have near ties, on "
    "which rounding leads elsewhere. Set config.batch_size lower."
  )


def take_steps(
  program: program_lib.Program,
  compiled: jax.stages.Compiled,
  batch: tuple[np.ndarray, np.ndarray],
  *,
  change: int = 0,
) -> Steps:
  """Takes some training steps on one batch.

  Args:
    program: the program.
    compiled: its step.
    batch: images and labels.
    change: 0, or the seed of a change of the first weights by rounding.
  """
  init_key, step_key = jax.random.split(jax.random.key(0))
  state = program.init(init_key)
  if change:
    rng = np.random.default_rng(change)
    state = state._replace(
      parameters=jax.tree.map(
        lambda x: x * (1 + 3e-7 * rng.standard_normal(x.shape, np.float32)),
        state.parameters,
      )
    )
  images, labels = jax.device_put(batch, program.batch_shardings)
  losses, gradients = [], None
  for _ in range(STEPS):
    state, totals = compiled(state, step_key, images, labels)
    losses.append(float(totals[0]))
    if gradients is None:
      gradients = jax.device_get(optax.tree.get(state.optimizer, "trace"))
  return Steps(
    losses=np.array(losses),
    gradients=gradients,
    parameters=jax.device_get(state.parameters),
  )


def differ(steps: Steps, expected: Steps) -> tuple[float, float, float]:
  """Largest relative differences: losses, gradients, parameters."""

  def distance(a, b) -> float:
    if np.array_equal(a, b):
      return 0.0
    found = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
    return float(found) if np.isfinite(found) else math.inf

  def arrays(layers) -> Iterator[np.ndarray]:
    """Each by itself; those of a batch normalization's layer together.

    The next one takes some shifts away again: their gradient is but rounding.
    """
    for blocks in layers.values():
      if "scale" in blocks:
        yield np.concatenate([block.ravel() for block in blocks.values()])
      else:
        yield from blocks.values()

  def largest(a, b) -> float:
    return max(map(distance, arrays(a), arrays(b)))

  return (
    max(map(distance, steps.losses, expected.losses)),
    largest(steps.gradients, expected.gradients),
    largest(steps.parameters, expected.parameters),
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

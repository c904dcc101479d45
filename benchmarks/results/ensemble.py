"""Reproduces "An ensemble at once" of docs/results.md.

    XLA_FLAGS=--xla_cpu_max_isa=AVX python -m benchmarks.results.ensemble

Trains five members of the default network of `digits` on an `ensemble` axis of
five simulated devices, and then each member in a run of its own, with the same
seed and the same order of images. The training losses of every report and the
final parameters must be equal; it exits with 1 if they differ by more than
1e-5.

Without the flag, XLA fuses multiplications and additions of the update
differently in the two programs. After some ten steps, near ties in pooling
amplify that rounding, as they do between two layouts.
"""

from __future__ import annotations

import sys

import jax
import ml_collections
import numpy as np
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.program import summary
from alexnet_jax.settings import settings
from benchmarks.results import curves
from configs import default

MEMBERS = 5
TOLERANCE = 1e-5


def define_flags() -> None:
  command.define_data_dir()
  flags.DEFINE_float("epochs", 2.0, "Length of each run.")
  flags.DEFINE_string("layout", "one_device", "Layout of a member.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = default.get_config("digits")
  config.layout.name = flags.FLAGS.layout
  config.num_epochs = flags.FLAGS.epochs
  config.log_every_steps = 1
  config.ensemble = MEMBERS
  together, lines = run(config)
  table = summary.make_table(
    f"{len(lines)} steps of {MEMBERS} members",
    *("> seed", "> loss at the end", "> losses", "> parameters"),
  )
  worst = 0.0
  config.ensemble = 1
  config.data.seed = config.seed
  for member in range(MEMBERS):
    config.seed = member
    alone, own_lines = run(config)
    losses = np.array([line["training_loss"] for line in own_lines])
    others = np.array([line["training_member_loss"][member] for line in lines])
    of_losses = float(np.max(np.abs(others - losses) / losses))
    of_parameters = max(
      jax.tree.leaves(
        jax.tree.map(
          lambda a, b, member=member: _distance(a[member], b),
          together,
          alone,
        )
      )
    )
    worst = max(worst, of_losses, of_parameters)
    table.add_row(
      str(member),
      f"{losses[-1]:.6f}",
      f"{of_losses:.1e}",
      f"{of_parameters:.1e}",
    )
  console = command.make_console()
  console.print(table)
  console.print(f"largest relative difference: {worst:.1e}", highlight=False)
  sys.exit(0 if worst <= TOLERANCE else 1)


def run(config: ml_collections.ConfigDict) -> tuple[dict, list[dict]]:
  """Returns the final parameters of a run, and its training reports."""
  _, layout = settings.check(config)
  state, lines = curves.train_to_end(
    config,
    data_dir=flags.FLAGS.data_dir,
    simulate_devices=MEMBERS * layout.devices,
  )
  return jax.device_get(state.parameters), [
    line for line in lines if "training_loss" in line
  ]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

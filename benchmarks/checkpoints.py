"""Measures the cost of a checkpoint of the full-size network.

    python -m benchmarks.checkpoints --config.batch_size=32

Measures size, time until it is on disk, and time to read, with Orbax alone and
with the checks of this project, while nothing trains. Then loops of steps with
one save take turns with loops without, which gives the time that training
loses. Steps run on one batch of noise that is on the devices already, without
input and reports. Files are read from the system's memory, as after a restart
on the same machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

import jax
from absl import app, flags
from orbax.checkpoint import v1 as ocp

from alexnet_jax.bench import turns
from alexnet_jax.checkpoints import checkpoint, reader
from alexnet_jax.cli import command
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import loop
from alexnet_jax.training import run as run_lib

# So that parameters change, velocities are not zero, and both stay finite.
_LEARNING_RATE = 1e-5
_LONGEST_SAVE_SECONDS = 600


def define_flags() -> None:
  command.define_config("configs/two_device.py:imagenet")
  flags.DEFINE_integer("steps", 50, "Steps of a loop.", lower_bound=1)
  flags.DEFINE_integer(
    "repeats", 3, "How often everything is measured.", lower_bound=1
  )
  command.define_path(
    "folder",
    "A folder on the disk to measure. Default: the one of TMPDIR.",
  )


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = flags.FLAGS.config
  with command.exit_on_error(ValueError, TypeError):
    network, layout = settings.check(config)
    settings.check_single(config, command="checkpoints")
    config.optimizer.learning_rate = _LEARNING_RATE
    mesh_lib.simulate_devices(layout.devices, only_cpu=False)
    program = run_lib.make_program(config, network, layout)
  steps = turns.StepRunner(program, compiled_step.compile_step(program)[0])
  with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as folder:
    steps.run(loop.STEPS_AHEAD)
    rows = measure_alone(steps.state, folder)
    loops = measure_loops(steps, folder)
  report(program, layout.name, rows, loops)


def measure_alone(
  state: step_lib.TrainState, folder: str
) -> dict[str, tuple[list[float], list[float]]]:
  """Seconds of (Orbax alone, this project), while nothing trains."""
  jax.block_until_ready(state)
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    ),
    state,
  )
  names = ("training waits, s", "on disk after, s", "reading, s")
  rows = {name: ([], []) for name in names}
  checkpoints = checkpoint.Checkpoints(folder, keep=1)
  for number in range(flags.FLAGS.repeats + 1):
    path = os.path.join(folder, f"orbax_{number}")
    begin = time.monotonic()
    response = ocp.save_async(path, state._asdict())
    blocked = time.monotonic() - begin
    response.result()
    alone = (
      blocked,
      time.monotonic() - begin,
      _time(lambda path=path: ocp.load(path, like._asdict())),
    )
    watcher = CheckpointWatcher(folder, number)
    checkpoints.save(number, state)
    blocked = time.monotonic() - watcher.begin
    ours = (
      blocked,
      watcher.wait(),
      _time(lambda number=number: reader.load(folder, number, like)),
    )
    if number:  # the first of each opens and compiles
      for name, *seconds in zip(names, alone, ours, strict=True):
        for row, value in zip(rows[name], seconds, strict=True):
          row.append(value)
  checkpoints.close()
  rows["size, MB"] = (
    [_find_megabytes(path)],
    [_find_megabytes(os.path.join(folder, "checkpoints", str(number)))],
  )
  return rows


def measure_loops(
  steps: turns.StepRunner, folder: str
) -> dict[str, list[float]]:
  """Seconds of loops without and with a save, one after the other."""
  workdir = os.path.join(folder, "loops")
  checkpoints = checkpoint.Checkpoints(workdir, keep=1)
  seconds = {"without": [], "with": [], "waits": [], "on disk after": []}
  for repeat in range(flags.FLAGS.repeats):
    seconds["without"].append(steps.run(flags.FLAGS.steps))
    watcher = CheckpointWatcher(workdir, repeat)

    def save(repeat=repeat, watcher=watcher):
      jax.block_until_ready(steps.state)  # the step is not part of the save
      watcher.begin = time.monotonic()
      checkpoints.save(repeat, steps.state)
      seconds["waits"].append(time.monotonic() - watcher.begin)

    seconds["with"].append(steps.run(flags.FLAGS.steps, after_first=save))
    # A loop that is shorter than the save does not contain all of it.
    seconds["on disk after"].append(watcher.wait())
  checkpoints.close()
  return seconds


class CheckpointWatcher:
  """Waits in a thread until a checkpoint of a step has its final name."""

  def __init__(self, workdir: str, step: int):
    self.begin, self._end = time.monotonic(), 0.0
    self._path = os.path.join(workdir, "checkpoints", str(step))
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    while not os.path.isdir(self._path):
      time.sleep(0.005)
    self._end = time.monotonic()

  def wait(self) -> float:
    """Returns the seconds from `begin` until the checkpoint was complete.

    Raises:
      TimeoutError: it was not written in time.
    """
    self._thread.join(_LONGEST_SAVE_SECONDS)
    if self._thread.is_alive():
      raise TimeoutError(
        f"{self._path} is missing, expected a checkpoint within "
        f"{_LONGEST_SAVE_SECONDS} s."
      )
    return self._end - self.begin


def report(program, layout: str, rows, loops) -> None:
  """Prints the section for the docs."""
  mean = statistics.mean
  devices = program.mesh.devices.flat
  parameters = sum(size.parameters for size in program.network.sizes().values())
  print(
    f"{parameters:,} parameters and their velocities, {layout} on "
    f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores, batch "
    f"{program.batch_size}; means of {flags.FLAGS.repeats}, the range behind:\n"
  )
  print("| while nothing trains | Orbax alone | with our checks |")
  print("| --- | ---: | ---: |")
  for name, (alone, ours) in rows.items():
    print(f"| {name} | {_show(alone)} | {_show(ours)} |")
  share = mean(loops["with"]) / mean(loops["without"]) - 1
  print(f"\n| a loop of {flags.FLAGS.steps} steps | |\n| --- | ---: |")
  for name, value in (
    ("without a save, s", _show(loops["without"])),
    ("with one, s", _show(loops["with"])),
    ("of which it waits, s", _show(loops["waits"])),
    ("on disk after, s", _show(loops["on disk after"])),
    ("time lost by training", f"{share:.2%}"),
    (
      "by pairs of loops",
      ", ".join(
        f"{one / other - 1:.2%}"
        for one, other in zip(loops["with"], loops["without"], strict=True)
      ),
    ),
  ):
    print(f"| {name} | {value} |")


def _show(values: list[float]) -> str:
  shown = f"{statistics.mean(values):.3g}"
  if len(values) > 1:
    shown += f" ({min(values):.3g} - {max(values):.3g})"
  return shown


def _time(read: Callable[[], object]) -> float:
  begin = time.monotonic()
  jax.block_until_ready(read())
  return time.monotonic() - begin


def _find_megabytes(folder: str) -> float:
  files = (
    os.path.join(place, name)
    for place, _, names in os.walk(folder)
    for name in names
  )
  return sum(map(os.path.getsize, files)) / 1e6


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

"""What a checkpoint of the full-size network costs.

    python -m benchmarks.checkpoints --config.batch_size=32

Size, time until it is on disk, time to read, by Orbax alone and with what is
done beside it here, while nothing trains; then loops of steps with one save
each, between loops without, from which follows what training loses. One batch
of noise, on the devices already: neither input nor reports are in the way.
Files are read from the system's memory, as after a restart on the same machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags
from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import checkpoint, reader
from alexnet_jax.cli import command
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import loop
from alexnet_jax.training import run as run_lib

# Parameters change, so that velocities are no zeros, and stay finite.
_RATE = 1e-5
_LONGEST_SAVE_SECONDS = 600


def define_flags() -> None:
  command.define_config("configs/two_device.py:imagenet")
  flags.DEFINE_integer("steps", 50, "Of a loop.", lower_bound=1)
  flags.DEFINE_integer("repeats", 3, "Of everything.", lower_bound=1)
  flags.DEFINE_string(
    "folder", None, "On the disk to measure. Default: /tmp's."
  )


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = flags.FLAGS.config
  with command.in_one_line(ValueError, TypeError):
    network, layout = settings.check(config)
    settings.check_single(config, command="checkpoints")
    config.optimizer.learning_rate = _RATE
    mesh_lib.simulate_devices(layout.devices, only_cpu=False)
    program = run_lib.make_program(config, network, layout)
  steps = Steps(program, config)
  with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as folder:
    steps.take(loop.STEPS_AHEAD)
    rows = measure_alone(steps.state, folder)
    loops = measure_loops(steps, folder)
  report(program, layout.name, rows, loops)


class Steps:
  """A training without its input.

  Args:
    program: of the step, compiled here.
    config: of it.
  """

  def __init__(self, program, config):
    self._step, _ = compiled_step.compile_step(program)
    init_key, self._key = program.make_keys(config.seed)
    self.state = program.init(init_key)
    rng = np.random.default_rng(0)
    side = config.data.stored_size
    images = rng.integers(
      0, 256, (config.batch_size, side, side, 3), dtype=np.uint8
    )
    labels = rng.integers(
      0, config.network.num_classes, config.batch_size, dtype=np.int32
    )
    self._batch = jax.device_put((images, labels), program.batch_shardings)
    self.number = 0

  def take(self, count: int, save: Callable[[], None] | None = None) -> float:
    """Seconds for so many steps, with a save after the first one."""
    begin, totals = time.monotonic(), []
    for number in range(count):
      self.state, total = self._step(self.state, self._key, *self._batch)
      self.number += 1
      totals.append(total)
      jax.block_until_ready(totals[-loop.STEPS_AHEAD - 1 : -loop.STEPS_AHEAD])
      if save is not None and number == 0:
        save()
    jax.block_until_ready(totals)
    return time.monotonic() - begin


def measure_alone(
  state: step_lib.TrainState, folder: str
) -> dict[str, tuple[list[float], list[float]]]:
  """Seconds by Orbax alone and as it is done here, while nothing trains."""
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
    times = (
      blocked,
      time.monotonic() - begin,
      _time(lambda path=path: ocp.load(path, like._asdict())),
    )
    alone = times
    watch = Watch(folder, number)
    checkpoints.save(number, state)
    blocked = time.monotonic() - watch.begin
    times = (
      blocked,
      watch.wait(),
      _time(lambda number=number: reader.load(folder, number, like)),
    )
    if number:  # the first of each opens and compiles
      for name, *seconds in zip(names, alone, times, strict=True):
        for row, value in zip(rows[name], seconds, strict=True):
          row.append(value)
  checkpoints.close()
  rows["size, MB"] = (
    [_find_megabytes(path)],
    [_find_megabytes(os.path.join(folder, "checkpoints", str(number)))],
  )
  return rows


def measure_loops(steps: Steps, folder: str) -> dict[str, list[float]]:
  """Seconds of loops without and with a save, one after the other."""
  place = os.path.join(folder, "loops")
  checkpoints = checkpoint.Checkpoints(place, keep=1)
  found = {"without": [], "with": [], "waits": [], "on disk after": []}
  count = flags.FLAGS.steps
  for _ in range(flags.FLAGS.repeats):
    found["without"].append(steps.take(count))
    watch = Watch(place, steps.number + 1)
    waits = []

    def save(watch=watch, waits=waits):
      jax.block_until_ready(steps.state)  # its step is not the save's time
      watch.begin = time.monotonic()
      checkpoints.save(steps.number, steps.state)
      waits.append(time.monotonic() - watch.begin)

    found["with"].append(steps.take(count, save))
    found["waits"] += waits
    # Where the loop is shorter than the save, it is not all in the loop.
    found["on disk after"].append(watch.wait())
  checkpoints.close()
  return found


class Watch:
  """Waits in a thread for a checkpoint to get its name.

  Args:
    workdir: where it will be.
    step: of it.
  """

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
    """Seconds from `begin` until it was there.

    Raises:
      TimeoutError: it does not come.
    """
    self._thread.join(_LONGEST_SAVE_SECONDS)
    if self._thread.is_alive():
      raise TimeoutError(f"{self._path} is not there, expected a checkpoint")
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

"""The examination of a group: what is looked at, in order, and what is said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import rich.console

from alexnet_jax.checkpoints import members
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import command
from alexnet_jax.data import host_batches
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine, shared_filesystem
from alexnet_jax.doctor import diagnosis, tables
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh, timing
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import devices, summary
from alexnet_jax.program import program as program_lib
from alexnet_jax.training import run as run_lib


class Examination:
  """Examines the processes of a run; all of them do all of this together.

  Attributes:
    facts: what was found, as JSON has it.
    problems: a line for each; the same in all processes.
  """

  def __init__(
    self,
    group: group_lib.Group,
    config: ml_collections.ConfigDict,
    console: rich.console.Console,
  ):
    self.facts: dict[str, Any] = {}
    self.problems: list[str] = []
    self._group = group
    self._config = config
    self._console = console

  def examine_processes(self, settings: dict[str, str]) -> None:
    """Versions, settings, hosts, and the devices of each process."""
    group, device = self._group, jax.local_devices()[0]
    version = " ".join(device.client.platform_version.split())
    versions = group.gather(
      "versions", {**machine.find_versions(), "platform": version}
    )
    settings = group.gather("settings", settings)
    processes = group.gather(
      "processes",
      {
        **machine.describe(),
        "cores": host_batches.find_cores(),
        "devices": jax.local_device_count(),
        "platform": device.platform,
        "kind": device.device_kind,
      },
    )
    self.facts |= {
      "versions": versions,
      "settings": settings,
      "processes": processes,
    }
    self.problems += diagnosis.find_differing_versions(group, versions)
    self.problems += diagnosis.find_unlike_devices(group, processes)
    self.problems += diagnosis.find_unreachable(group, processes)
    both = [a | b for a, b in zip(versions, settings, strict=True)]
    self._console.print(tables.versions(group, both))
    command.print_whole(self._console, tables.processes(processes))

  def examine_program(
    self, network: wiring.Network, layout: layout_lib.Layout
  ) -> program_lib.Program | None:
    """The mesh of the layout, and whether the devices hold the state."""
    group, program, problem = self._group, None, None
    try:
      program = run_lib.make_program(self._config, network, layout)
    except ValueError as error:
      problem = str(error)
    if problems := self._join("mesh", problem):
      self.problems += problems
      return None
    held = devices.find_held(
      program, batches_ahead=self._config.data.batches_ahead
    )
    used = {*program.mesh.devices.flat}
    memory = group.gather(
      "memory",
      [
        devices.find_memory(device)
        for device in jax.local_devices()
        if device in used
      ],
    )
    self.facts["memory"] = {"held": held, "devices": memory}
    self.problems += diagnosis.find_lack_of_memory(
      group, self.facts["processes"], memory, sum(held.values())
    )
    limits = {
      device["id"]: machine.to_size(device["limit"])
      for of_process in memory
      for device in of_process
      if device["limit"] is not None
    }
    activations = sum(
      share.activation_bytes for share in program.shares.values()
    )
    command.print_whole(self._console, summary.devices(program.mesh, limits))
    self._console.print()
    for line in tables.memory(held, activations):
      self._say(line)
    return program

  def examine_data(
    self, network: wiring.Network, data_dir: str | None
  ) -> dict[str, Any] | None:
    """Returns what a workdir keeps of the data; None if it is not there."""
    group = self._group
    found, problem = find_data(self._config, network, data_dir=data_dir)
    self.problems += self._join("data", problem)
    every = group.gather("data/found", found)
    self.facts["data"] = every
    alike = [found and found["alike"] for found in every]
    self.problems += run_lib.find_differences(group, alike)
    lines = [found and tables.data(found) for found in every]
    for line in diagnosis.join_equal(group, lines, name_all=False):
      self._say(line)
    return next((data for data in alike if data), None)

  def examine_workdir(self, path: str, data: dict[str, Any] | None) -> None:
    """Whether all processes may write to it, and whose it is."""
    group, problem = self._group, None
    try:
      workdir_lib.check(path)
    except OSError as error:
      problem = str(error)
    problems = self._join("workdir", problem)
    folder = workdir_lib.find_existing(path)
    if not problems:
      problems = diagnosis.join_equal(
        group, shared_filesystem.find_problems(group, folder)
      )
    run, problem = group.first(
      "workdir/run",
      lambda: find_run(path, self._config, data),
    )
    found = {"path": os.path.abspath(path), "folder": folder, "run": run}
    self.facts["workdir"] = found
    for line in tables.workdir(group, found) if not problems else []:
      self._say(line)
    self.problems += problems + ([problem] if problem else [])

  def examine_links(
    self, program: program_lib.Program, timeout_seconds: float
  ) -> bool:
    """Returns whether all that was sent has arrived."""
    with command.mute_libraries():
      rows, problems = measure_axes(
        self._group, program, timeout_seconds=timeout_seconds
      )
    self.facts["axes"] = rows
    self.problems += problems
    command.print_whole(self._console, tables.links(rows))
    return not problems

  def conclude(self) -> None:
    """The verdict."""
    self.facts["problems"] = self.problems
    self._console.print()
    for line in tables.verdict(self.problems):
      self._say(line)

  def _join(self, name: str, problem: str | None) -> list[str]:
    """What processes have to say of a problem, if any has one."""
    said = self._group.gather(
      f"{name}/problem", problem and " ".join(problem.split())
    )
    return diagnosis.join_equal(self._group, said)

  def _say(self, line: str) -> None:
    self._console.print(line, soft_wrap=True, highlight=False)


def find_data(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  *,
  data_dir: str | None,
) -> tuple[dict[str, Any] | None, str | None]:
  """The set of a config, as this process finds it; writes nothing.

  Args:
    config: the config.
    network: from `settings.check`.
    data_dir: where TFDS keeps its sets.

  Returns:
    `dataset`, `folder`, and `alike`, from `run.describe_data`, None where the
    set is made at the first run; and what is wrong with it, None if nothing.
  """
  try:
    builder, statistics = run_lib.open_data(config, network, data_dir=data_dir)
    folder = os.fspath(builder.data_dir)
    found = {"dataset": config.data.name, "folder": folder, "alike": None}
    if builder.info.splits:
      splits = run_lib.open_splits(config, builder)
      for records in splits:
        records[0]
      found["alike"] = run_lib.describe_data(builder, statistics, *splits)
      return found, None
  except (ValueError, TypeError, OSError) as error:
    return None, str(error)
  above = workdir_lib.find_existing(folder)
  if os.access(above, os.W_OK | os.X_OK):
    return found, None
  return None, (
    f"dataset {config.data.name!r} is made at the first run, but {above} is "
    "not yours to write to. Set --data_dir."
  )


def find_run(
  path: str,
  config: ml_collections.ConfigDict,
  data: Mapping[str, Any] | None,
) -> tuple[dict[str, Any] | None, str | None]:
  """The run that a workdir holds.

  Args:
    path: of the workdir.
    config: of the run that is to start.
    data: from `run.describe_data`; None: not known, and not compared.

  Returns:
    Its main fields and its newest step, None without a run; and why this run
    could not go on with it, None where it could.
  """
  try:
    earlier = workdir_lib.read(path)
    if earlier is None:
      return None, None
    run = {
      "layout": earlier.get("layout.name"),
      "wiring": earlier.get("network.wiring"),
      "dataset": earlier.get("data.name"),
      "batch_size": earlier.get("batch_size"),
      "step": members.find_latest_step(path, earlier.get("ensemble", 1)),
    }
  except (OSError, ValueError) as error:
    return None, (
      f"the run in workdir {path!r} cannot be read ({error}). Set --workdir."
    )
  now = workdir_lib.to_fields(config.to_dict(), data or {})
  if data is None:
    earlier = {
      name: value
      for name, value in earlier.items()
      if not name.startswith("found.")
    }
  try:
    workdir_lib.check_same(path, earlier, now)
  except ValueError as error:
    return run, str(error)
  return run, None


def measure_axes(
  group: group_lib.Group,
  program: program_lib.Program,
  *,
  timeout_seconds: float,
) -> tuple[list[dict[str, Any]], list[str]]:
  """Measures the links of each axis; in all processes together.

  After an axis that does not answer, the others are not tried.

  Args:
    group: the processes.
    program: on a mesh of their devices.
    timeout_seconds: for each thing that is sent.

  Returns:
    What is known of each axis, None for what was not measured; and problems.
  """
  links = mesh.find_links(program.mesh, dict(enumerate(group.hosts)))
  sent = plan_lib.sent_along(program.plan)
  rows, problems = [], []
  for axis, size in program.mesh.shape.items():
    speed = None
    if size > 1 and not problems:
      own, problem = None, None
      try:
        own = timing.measure(
          program.mesh, axis, timeout_seconds=timeout_seconds
        )
      except (TimeoutError, RuntimeError) as error:
        problem = str(error)
      every = group.gather(f"links/{axis}", [problem, own and [*own.items()]])
      problems = diagnosis.find_silent_links(
        group, axis, links[axis], [said for said, _ in every]
      )
      if not problems:
        speed = _find_slowest([dict(own) for _, own in every], size)
    rows.append(
      {
        "axis": axis,
        "devices": size,
        "links": links[axis],
        "exchanges": timing.count_exchanges(program.plan, axis),
        "sent_bytes": sent.get(axis, 0),
        "latency_seconds": speed and speed.latency_seconds,
        "bytes_per_second": speed and speed.rates,
        "step_seconds": speed
        and timing.predict_seconds(program.plan, axis, speed),
      }
    )
  return rows, problems


def _find_slowest(
  seconds: list[dict[int, float]], devices: int
) -> timing.Speed:
  slowest = {
    size: max(of_process[size] for of_process in seconds) for size in seconds[0]
  }
  return timing.to_speed(slowest, devices=devices)

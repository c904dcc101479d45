"""The checks of the doctor, in their order: what each finds and prints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
import rich.console

from alexnet_jax.checkpoints import members
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import command
from alexnet_jax.data import cores
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine, shared_filesystem
from alexnet_jax.doctor import diagnosis, tables
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh, timing
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import devices, summary
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import fields
from alexnet_jax.training import run as run_lib


class Examination:
  """Examines the processes of a run; all of them call each method together.

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
    """Compares versions, settings, hosts and devices of the processes."""
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
        "cores": cores.count_cores(),
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
    self.problems += diagnosis.find_differing_devices(group, processes)
    self.problems += diagnosis.find_unreachable_hosts(group, processes)
    both = [a | b for a, b in zip(versions, settings, strict=True)]
    self._console.print(tables.make_versions_table(group, both))
    command.print_table(self._console, tables.make_processes_table(processes))
    self._print([f"processes: {group.count}, according to {group.source}"])

  def examine_program(
    self, network: wiring.Network, layout: layout_lib.Layout
  ) -> program_lib.Program | None:
    """Makes the mesh of the layout; checks that devices can hold the state."""
    group, program, problem = self._group, None, None
    try:
      program = run_lib.make_program(self._config, network, layout)
    except ValueError as error:
      problem = str(error)
    if problems := self._gather_problem("mesh", problem):
      self.problems += problems
      return None
    held = devices.count_held_bytes(
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
    self.problems += diagnosis.find_memory_shortage(
      group, self.facts["processes"], memory, sum(held.values())
    )
    limits = {
      device["id"]: machine.format_bytes(device["limit"])
      for of_process in memory
      for device in of_process
      if device["limit"] is not None
    }
    activations = sum(
      share.activation_bytes for share in program.device_loads.values()
    )
    command.print_table(
      self._console, summary.make_device_table(program.mesh, limits)
    )
    self._console.print()
    self._print(tables.describe_memory(held, activations))
    return program

  def examine_data(
    self, network: wiring.Network, data_dir: str | None
  ) -> dict[str, Any] | None:
    """Returns the fingerprint of the data; None if the set does not exist."""
    group = self._group
    found, problem = check_data(self._config, network, data_dir=data_dir)
    self.problems += self._gather_problem("data", problem)
    facts = group.gather("data/found", found)
    self.facts["data"] = facts
    fingerprints = [one and one["fingerprint"] for one in facts]
    self.problems += run_lib.compare_data(group, fingerprints)
    lines = [one and tables.describe_data(one) for one in facts]
    self._print(diagnosis.merge_equal_lines(group, lines, name_all=False))
    return next((data for data in fingerprints if data), None)

  def examine_workdir(self, path: str, data: dict[str, Any] | None) -> None:
    """Checks that all processes can write to it, and that its run fits."""
    group, problem = self._group, None
    try:
      workdir_lib.check_writable(path)
    except OSError as error:
      problem = str(error)
    problems = self._gather_problem("workdir", problem)
    folder = workdir_lib.find_existing_parent(path)
    if not problems:
      problems = diagnosis.merge_equal_lines(
        group, shared_filesystem.find_problems(group, folder)
      )
    run, problem = group.run_in_first(
      "workdir/run",
      lambda: check_run(path, self._config, data),
    )
    found = {"path": os.path.abspath(path), "folder": folder, "run": run}
    self.facts["workdir"] = found
    if not problems:
      self._print(tables.describe_workdir(group, found))
    self.problems += problems + ([problem] if problem else [])

  def examine_links(
    self, program: program_lib.Program, timeout_seconds: float
  ) -> bool:
    """Times the links of each mesh axis; returns whether all of them work."""
    with command.mute_libraries():
      rows, problems = measure_axes(
        self._group, program, timeout_seconds=timeout_seconds
      )
    self.facts["axes"] = rows
    self.problems += problems
    command.print_table(self._console, tables.make_links_table(rows))
    return not problems

  def conclude(self) -> None:
    """Prints the problems, or that a run would start."""
    self.facts["problems"] = self.problems
    self._console.print()
    self._print(tables.describe_problems(self.problems))

  def _gather_problem(self, name: str, problem: str | None) -> list[str]:
    """Returns a line for each different problem that a process has."""
    problems = self._group.gather(
      f"{name}/problem", problem and " ".join(problem.split())
    )
    return diagnosis.merge_equal_lines(self._group, problems)

  def _print(self, lines: Iterable[str]) -> None:
    for line in lines:
      command.print_line(self._console, line)


def check_data(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  *,
  data_dir: str | None,
) -> tuple[dict[str, Any] | None, str | None]:
  """Opens the set of a config in this process; writes nothing.

  Args:
    config: the config.
    network: from `settings.check`.
    data_dir: where TFDS keeps its sets.

  Returns:
    `dataset`, `folder` and `fingerprint`, which is None where the first run
    makes the set; and the problem, None if there is none.
  """
  try:
    builder, statistics = run_lib.open_data(config, network, data_dir=data_dir)
    folder = os.fspath(builder.data_dir)
    found = {"dataset": config.data.name, "folder": folder, "fingerprint": None}
    if builder.info.splits:
      splits = run_lib.open_splits(config, builder)
      for records in splits:
        records[0]
      found["fingerprint"] = run_lib.fingerprint_data(
        builder, statistics, *splits
      )
      return found, None
  except (ValueError, TypeError, OSError) as error:
    return None, str(error)
  parent = workdir_lib.find_existing_parent(folder)
  if os.access(parent, os.W_OK | os.X_OK):
    return found, None
  return None, (
    f"dataset {config.data.name!r} is made at the first run, but {parent} is "
    "not yours to write to. Set --data_dir."
  )


def check_run(
  path: str,
  config: ml_collections.ConfigDict,
  data: Mapping[str, Any] | None,
) -> tuple[dict[str, Any] | None, str | None]:
  """Reads the run in a workdir.

  Args:
    path: the workdir.
    config: of the run that would start.
    data: from `run.fingerprint_data`; None: not known, and not compared.

  Returns:
    Its main fields and its newest step, None without a run; and why the run
    could not resume from it, None if it could.
  """
  try:
    earlier = workdir_lib.read_config(path)
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
  now = workdir_lib.flatten_config(config.to_dict(), data or {})
  if data is None:
    earlier = {
      name: value
      for name, value in earlier.items()
      if not name.startswith("found.")
    }
  try:
    workdir_lib.check_same_config(
      path,
      earlier,
      now,
      may_change=fields.find_changeable(config.optimizer.schedule),
    )
  except ValueError as error:
    return run, str(error)
  return run, None


def measure_axes(
  group: group_lib.Group,
  program: program_lib.Program,
  *,
  timeout_seconds: float,
) -> tuple[list[dict[str, Any]], list[str]]:
  """Times sums along each axis, in all processes together.

  After an axis that does not answer, the others are not tried.

  Args:
    group: the processes.
    program: on a mesh of their devices.
    timeout_seconds: for each sum.

  Returns:
    The facts of each axis, None for what was not measured; and problems.
  """
  links = mesh.find_links(program.mesh, dict(enumerate(group.hosts)))
  sent = plan_lib.sent_along(program.plan)
  rows, problems = [], []
  for axis, size in program.mesh.shape.items():
    speed = None
    if size > 1 and not problems:
      seconds, problem = None, None
      try:
        seconds = timing.time_sums(
          program.mesh, axis, timeout_seconds=timeout_seconds
        )
      except (TimeoutError, RuntimeError) as error:
        problem = str(error)
      results = group.gather(
        f"links/{axis}", [problem, seconds and [*seconds.items()]]
      )
      problems = diagnosis.find_failed_links(
        group, axis, links[axis], [problem for problem, _ in results]
      )
      if not problems:
        times = [dict(seconds) for _, seconds in results]
        slowest = {key: max(one[key] for one in times) for key in times[0]}
        speed = timing.to_speed(slowest, devices=size)
    rows.append(
      {
        "axis": axis,
        "devices": size,
        "links": links[axis],
        "exchanges": timing.count_collectives(program.plan, axis),
        "sent_bytes": sent.get(axis, 0),
        "latency_seconds": speed and speed.latency_seconds,
        "bytes_per_second": speed and speed.rates,
        "step_seconds": speed
        and timing.predict_seconds(program.plan, axis, speed),
      }
    )
  return rows, problems

"""What processes find of a run that has not begun: data, workdir, links."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from alexnet_jax.checkpoints import members
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.doctor import diagnosis
from alexnet_jax.network import wiring
from alexnet_jax.partition import links as links_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import timing
from alexnet_jax.program import program as program_lib
from alexnet_jax.training import run as run_lib


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
  links = links_lib.find_links(program.mesh, dict(enumerate(group.hosts)))
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

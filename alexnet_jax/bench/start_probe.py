"""One start of a run with a clock, up to the end of its first step.

    python -m alexnet_jax.speed.start_probe --config=... --workdir=DIR

What `bench --what=startup` starts: the run of `main`, told to nobody. Prints
when each phase of `startup.PHASES` was over, in seconds of the system's clock,
and whether the step came from the compilation cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Iterator

from alexnet_jax.distributed import malloc

if __name__ == "__main__":  # as main does, before the imports that take seconds
  malloc.keep(sys.argv)

import jax
import rich.console
from absl import app, flags

from alexnet_jax.bench import startup
from alexnet_jax.cli import command
from alexnet_jax.data import pipeline
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import compilation_cache
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.", required=True)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_SIMULATE_DEVICES = command.define_simulate_devices()
_XLA_OPTIONS = command.define_xla_options()
_IMPLEMENTATIONS = command.define_implementations()
_COMPILATION_CACHE = command.define_compilation_cache()

# Of JAX's monitoring.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read


class Done(Exception):
  """The first step is over."""


class Marks(dict[str, float]):
  """When each phase was over, and the newest event of each kind of JAX's."""

  def __init__(self):
    super().__init__()
    self._events: dict[str, float] = {}
    jax.monitoring.register_event_duration_secs_listener(self._note)

  def _note(self, event: str, seconds: float, **_) -> None:
    self._events[event] = time.time()

  def add(self, phase: str) -> None:
    """The phase is over."""
    self[phase] = time.time()

  def add_compilation(self) -> None:
    """What was lowered and compiled last ends these phases."""
    self[startup.LOWER] = self._events[_LOWERED]
    self[startup.COMPILE] = self._events[_COMPILED]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarkedCache(compilation_cache.Cache):
  """The cache of a run, which marks when the step is compiled.

  Attributes:
    marks: to which it adds.
    found: whether all came from it, of each that was watched.
  """

  marks: Marks
  found: list[bool] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def watch(self, what: str) -> Iterator[compilation_cache.Compilation]:
    self.marks.add(startup.TABLES)
    with super().watch(what) as compilation:
      yield compilation
    self.marks.add_compilation()
    self.marks.add(startup.AUDIT)
    self.found.append(compilation.read > 0 and compilation.written == 0)


class FirstStep(loop_lib.Loop):
  """A loop that ends after one step.

  Args:
    marks: to which it adds.
    run: of the loop.
    **rest: of the arguments of `loop.Loop`.
  """

  def __init__(self, marks: Marks, run: run_lib.Run, **rest):
    super().__init__(run, **rest)
    self._marks = marks
    jax.block_until_ready(self.state)
    marks.add(startup.STATE)

  def _take_step(self, number: int, batch: pipeline.Batch) -> None:
    jax.block_until_ready((batch.images, batch.labels))
    self._marks.add(startup.BATCH)
    super()._take_step(number, batch)
    jax.block_until_ready((self.state, self._totals))
    self._marks.add(startup.STEP)
    raise Done


def main(argv: list[str]) -> None:
  marks = Marks()
  marks.add(startup.IMPORTS)
  command.check_no_arguments(argv)
  with command.in_one_line(ValueError, TypeError, OSError):
    run = run_lib.prepare(
      _CONFIG.value,
      group=group_lib.alone(),
      workdir=_WORKDIR.value,
      data_dir=_DATA_DIR.value,
      simulate_devices=_SIMULATE_DEVICES.value,
      xla_options=_XLA_OPTIONS.value,
      implementations=_IMPLEMENTATIONS.value,
      cache_dir=_COMPILATION_CACHE.value,
    )
  marks.add(startup.SET_UP)
  cache = MarkedCache(**dataclasses.asdict(run.cache), marks=marks)
  with open(os.devnull, "w") as nowhere, contextlib.suppress(Done):
    train.train(
      dataclasses.replace(run, cache=cache),
      rich.console.Console(file=nowhere, width=command.PLAIN_WIDTH),
      make_loop=functools.partial(FirstStep, marks),
    )
  print(json.dumps({"marks": marks, "from_cache": all(cache.found)}))


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

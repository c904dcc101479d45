"""Times one start of a run, up to the end of its first step.

    python -m alexnet_jax.bench.start_probe --config=... --workdir=DIR

`bench --what=startup` starts this process: the run of `main`, without its
reports. It prints when each phase of `startup.PHASES` was over, in seconds of
the system's clock, and whether the step came from the compilation cache.
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
  malloc.keep_freed_memory(sys.argv)

import jax
from absl import app

from alexnet_jax.bench import startup
from alexnet_jax.cli import command
from alexnet_jax.data import pipeline
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import compilation_cache
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train

_CONFIG = command.define_config()
_WORKDIR = command.define_path(
  "workdir", "Directory of the run.", required=True
)
_DATA_DIR = command.define_data_dir()
_SIMULATE_DEVICES = command.define_simulate_devices()
_XLA_OPTIONS = command.define_xla_options()
_IMPLEMENTATIONS = command.define_implementations()
_COMPILATION_CACHE = command.define_compilation_cache()

# Events of jax.monitoring.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read


class FirstStepDone(loop_lib.Stopped):
  """Ends the loop after its first step, without a checkpoint."""


class Marks(dict[str, float]):
  """When each phase was over.

  Also listens to JAX's events, and keeps the time of the last of each kind.
  """

  def __init__(self):
    super().__init__()
    self._events: dict[str, float] = {}
    jax.monitoring.register_event_duration_secs_listener(self._note)

  def _note(self, event: str, seconds: float, **_) -> None:
    self._events[event] = time.time()

  def end(self, phase: str) -> None:
    """Notes that the phase is over."""
    self[phase] = time.time()

  def end_compilation(self) -> None:
    """Notes when the last program was lowered, and when it was compiled."""
    self[startup.LOWER] = self._events[_LOWERED]
    self[startup.COMPILE] = self._events[_COMPILED]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarkedCache(compilation_cache.Cache):
  """The cache of a run; marks when the step is compiled.

  Attributes:
    hits: for each compilation, whether all programs came from the cache.
  """

  marks: Marks
  hits: list[bool] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def watch(self, what: str) -> Iterator[compilation_cache.Compilation]:
    self.marks.end(startup.TABLES)
    with super().watch(what) as compilation:
      yield compilation
    self.marks.end_compilation()
    self.marks.end(startup.AUDIT)
    self.hits.append(compilation.read > 0 and compilation.written == 0)


class OneStepLoop(loop_lib.Loop):
  """A loop that ends after one step."""

  def __init__(self, marks: Marks, run: run_lib.Run, **options):
    super().__init__(run, **options)
    self._marks = marks
    jax.block_until_ready(self.state)
    marks.end(startup.STATE)

  def _take_step(self, number: int, batch: pipeline.Batch) -> None:
    jax.block_until_ready((batch.images, batch.labels))
    self._marks.end(startup.BATCH)
    super()._take_step(number, batch)
    jax.block_until_ready((self.state, self._totals))
    self._marks.end(startup.STEP)
    raise FirstStepDone


def main(argv: list[str]) -> None:
  marks = Marks()
  marks.end(startup.IMPORTS)
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError):
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
  marks.end(startup.SET_UP)
  cache = MarkedCache(**dataclasses.asdict(run.cache), marks=marks)
  with open(os.devnull, "w") as nowhere, contextlib.suppress(FirstStepDone):
    train.train(
      dataclasses.replace(run, cache=cache),
      command.make_console(file=nowhere),
      make_loop=functools.partial(OneStepLoop, marks),
    )
  print(json.dumps({"marks": marks, "from_cache": all(cache.hits)}))


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

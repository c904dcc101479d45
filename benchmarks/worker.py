"""What every worker of `benchmarks.peers` does: takes steps when it is told to.

Standard library only: it is imported beside PyTorch as well as beside JAX. The
other end is `turns.py`. A worker gets its settings as JSON in its argument,
says {"ready": true, **facts} once its step is compiled and warm, and from then
on answers each line "UNTIMED TIMED", two numbers of steps, with {"seconds":
..., "loss": ..., "idle_cpu_seconds": ...}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Compiling aside, the first steps are slower: memory is touched first.
WARM_STEPS = 3

# Takes so many steps, waits for all that they change; the loss of the last.
TakeSteps = Callable[[int], float]


def serve(make: Callable[..., tuple[TakeSteps, dict[str, Any]]]) -> None:
  """Answers until nobody asks any more.

  Args:
    make: settings as keyword arguments -> a step, and facts about it.
  """
  # What libraries print must not get between the answers.
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  begin = time.perf_counter()
  take_steps, facts = make(**json.loads(sys.argv[1]))
  first_loss = take_steps(1)
  take_steps(WARM_STEPS - 1)
  facts |= {
    "first_loss": first_loss,
    "start_seconds": time.perf_counter() - begin,
  }
  print(json.dumps({"ready": True, **facts}), file=answers)
  rested = time.process_time()
  for line in sys.stdin:
    idle = time.process_time() - rested
    untimed, timed = map(int, line.split())
    if untimed:
      take_steps(untimed)
    begin = time.perf_counter()
    loss = take_steps(timed)
    seconds = (time.perf_counter() - begin) / timed
    answer = {"seconds": seconds, "loss": loss, "idle_cpu_seconds": idle}
    print(json.dumps(answer), file=answers)
    rested = time.process_time()


def find_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1

"""The protocol of a worker of `benchmarks.peers`: it runs steps on request.

Standard library only, since both PyTorch and JAX workers import it. The other
end is `workers.py`. A worker gets its settings as JSON in its argument, prints
{"ready": true, **facts} when its step is compiled and warm, and from then on
answers each line "UNTIMED TIMED", two numbers of steps, with {"seconds": ...,
"loss": ..., "idle_cpu_seconds": ...}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# The first steps are slower even after compilation: they touch new memory.
WARM_STEPS = 3

# Runs a number of steps and waits for them; returns the loss of the last.
RunSteps = Callable[[int], float]


def serve(make: Callable[..., tuple[RunSteps, dict[str, Any]]]) -> None:
  """Answers until the input ends.

  Args:
    make: settings as keyword arguments -> a step, and facts about it.
  """
  # Output of libraries must not mix with the answers.
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  begin = time.perf_counter()
  run_steps, facts = make(**json.loads(sys.argv[1]))
  first_loss = run_steps(1)
  run_steps(WARM_STEPS - 1)
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
      run_steps(untimed)
    begin = time.perf_counter()
    loss = run_steps(timed)
    seconds = (time.perf_counter() - begin) / timed
    answer = {"seconds": seconds, "loss": loss, "idle_cpu_seconds": idle}
    print(json.dumps(answer), file=answers)
    rested = time.process_time()


def count_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1

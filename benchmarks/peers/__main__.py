"""Compares our training step with what people use: python -m benchmarks.peers

Complete steps of the same network, batch and update rule, in one run on one
machine. Worker processes that are compiled and warm take turns, a step each,
and the reported ratios are of steps of the same round. A machine that slows
down slows all of them.

The network is that of 2012: two columns, 224 pixels. The update is SGD with
momentum .9, weight decay of the kernels, and twice the rate for biases. Each
variant follows its own documentation:
- ours: a step of configs/one_device.py:imagenet as `main` trains it;
  ours_two_column: that of configs/two_device.py:imagenet, whose two devices are
  simulated on a CPU. Our step crops, mirrors and colors its batch of bytes, and
  counts errors. The others get crops of float32, which is less work.
- flax: `nnx.Conv` with groups, one `jax.jit`, optax, XLA's defaults.
- torch: PyTorch, eager or with torch.compile, as NCHW or with channels last,
  with as many threads as cores and the fused optimizer.
`--kept_heap` adds flax and PyTorch with a glibc that keeps freed memory in huge
pages, as ours does. On a CPU this alone may matter more than all else.

PyTorch is not a requirement of this project, and JAX and PyTorch are never in
one process. `--torch_python` is the Python of an environment with

    pip install -r requirements-bench.txt

On a machine with one NVIDIA GPU, which needs `pip install "jax[cuda13]"` too:

    python -m benchmarks.peers --batch_sizes=128,512,1024,2048 --rounds=9 \\
      --steps=20 --untimed_steps=5 --at_once=3 --markdown=peers_gpu.md

There, JAX takes memory as it needs it (XLA_PYTHON_CLIENT_PREALLOCATE=false), as
the workers would not fit side by side otherwise, and cuDNN chooses algorithms
by trying. `peers/variants.py` and the facts of each row give the precision of
products. A worker takes up to a minute to start. If time is short, select with
`--variants`, as `--variants=flax,torch_*channels_last_tf32,torch_*bfloat16`. A
variant that runs out of memory is reported as failed, and the others continue.
"""

import json
import os
import platform as machine
import sys
from collections.abc import Mapping

from absl import app, flags

from alexnet_jax.cli import command
from benchmarks import page
from benchmarks.peers import tables, variants, worker, workers


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  with command.exit_on_error(ValueError, OSError):
    sizes = command.parse_counts("batch_sizes", values.batch_sizes)
    page.check_markdown()
    platform = variants.find_platform()
    variants.check_heap(values.kept_heap, platform)
    chosen = variants.choose(
      platform, values.variants, kept_heap=values.kept_heap
    )
    missing = variants.find_missing(values.torch_python, platform, chosen)
  console, comparisons = command.make_console(), []
  load, *_ = os.getloadavg()
  for size in sizes:
    comparison = tables.Comparison(size, measure(size, chosen, missing))
    comparisons.append(comparison)
    if values.format == "table":
      for part in (comparison.to_page().to_rich(), *comparison.lines()):
        command.print_line(console, part)
  about = (
    f"{values.rounds} rounds, {values.steps} steps a turn, "
    f"{worker.count_cores()} cores of {machine.machine()}, {platform}, a load "
    f"of {load:.1f} before"
  )
  if values.format == "json":
    data = {"about": about, "tables": [it.to_data() for it in comparisons]}
    print(json.dumps(data, indent=2))
  else:
    command.print_line(console, f"\n{about}")
  page.write(
    "How fast is our training step, compared with others?",
    f"`python -m benchmarks.peers` writes this page: {about}.",
    __doc__,
    *(comparison.to_markdown() for comparison in comparisons),
  )
  failed = [
    measured.error
    for comparison in comparisons
    for measured in comparison.measured.values()
    if measured.error
  ]
  if failed:
    command.exit_with_error(
      workers.WorkerError(f"{len(failed)} failed: {failed[0]}")
    )


def make_command(
  variant: variants.Variant, *, batch_size: int
) -> workers.Command:
  """Returns the command that starts the worker of a variant."""
  values = flags.FLAGS
  is_torch = variant.worker == variants.TORCH
  settings = {
    "batch_size": batch_size,
    "width": values.width,
    "image_size": values.image_size,
    **variant.settings,
  }
  environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | dict(os.environ)
  return workers.Command(
    arguments=(
      *(values.torch_python if is_torch else sys.executable, "-m"),
      *(f"benchmarks.peers.{variant.worker}", json.dumps(settings)),
    ),
    environment=environment | dict(variant.environment),
  )


def measure(
  batch_size: int,
  chosen: Mapping[str, variants.Variant],
  missing: str | None,
) -> dict[str, workers.Measured]:
  """Measures all variants; those that cannot run or fail say why."""
  values, measured = flags.FLAGS, {}
  commands = {
    name: make_command(variant, batch_size=batch_size)
    for name, variant in chosen.items()
    if missing is None or variant.worker != variants.TORCH
  }
  for reference, others in variants.group(chosen, values.at_once):
    names = [name for name in (reference, *others) if name in commands]
    try:
      group = workers.measure(
        {name: commands[name] for name in names},
        reference=reference,
        rounds=values.rounds,
        untimed=values.untimed_steps,
        timed=values.steps,
        limit_seconds=values.limit_seconds,
        log=lambda line: print(f"batch {batch_size}: {line}", file=sys.stderr),
      )
    except workers.WorkerError as error:
      group = {name: workers.Measured(error=str(error)) for name in names}
    for name, rounds in group.items():
      earlier = measured.get(name)
      measured[name] = earlier.join(rounds) if earlier else rounds
  return {
    name: measured.get(name, workers.Measured(missing=missing))
    for name in chosen
  }


def define_flags() -> None:
  """Not on import: other benchmarks have flags of the same names."""
  command.define_list(
    "batch_sizes", "32,128", "Images in a step; a table for each."
  )
  command.define_list("variants", [], "Names, * for any part. Default: all.")
  flags.DEFINE_integer("rounds", 9, "Turns of each worker.", lower_bound=1)
  flags.DEFINE_integer(
    "steps",
    1,
    "Steps of a turn, timed together; more for a GPU.",
    lower_bound=1,
  )
  flags.DEFINE_integer(
    "untimed_steps",
    0,
    "Steps before those of each turn; for a GPU, whose clock falls when idle.",
    lower_bound=0,
  )
  flags.DEFINE_integer(
    "at_once",
    None,
    "Most workers at a time, if memory is short: one of ours and others beside "
    "it. Default: any number.",
    lower_bound=2,
  )
  flags.DEFINE_boolean(
    "kept_heap",
    False,
    "Run flax and PyTorch also with a C library that keeps freed memory.",
  )
  command.define_path(
    "torch_python", "The Python that has PyTorch.", default=sys.executable
  )
  flags.DEFINE_float(
    "width", 1.0, "Width of the network; less to try this out."
  )
  flags.DEFINE_integer(
    "image_size", 224, "Side of an image in pixels; fewer to try this out."
  )
  flags.DEFINE_float(
    "limit_seconds", 1800.0, "A worker hangs if it does not answer for so long."
  )
  command.define_format()
  page.define_markdown()


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

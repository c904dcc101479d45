"""Our training step beside what people use instead: python -m benchmarks.peers

Whole steps of the same network, batch and update rule, in one run on one
machine: worker processes that are compiled and warm take turns, a step each,
and what is reported of a pair are the ratios of their rounds. A machine that
slows down slows all of them.

The network is that of 2012, two columns, 224 pixels; SGD with momentum .9,
decay of the kernels that enters with the gradient, biases at twice the rate.
Each variant is as its own documentation has it:
- ours: a step of configs/one_device.py:imagenet as `main` trains it;
  ours_two_column: that of configs/two_device.py:imagenet, whose two devices are
  simulated on a CPU. Ours crops, mirrors and colors its batch inside the step,
  from bytes, and counts errors. The others are given crops of float32, which is
  less work.
- flax: `nnx.Conv` with groups, one `jax.jit`, optax, XLA's defaults.
- torch: PyTorch, eager or with torch.compile, as NCHW or with channels last;
  its threads are the cores of the process, its optimizer is the fused one.
`--kept_heap` runs flax and PyTorch once more with a glibc that keeps freed
memory, in huge pages, as ours has it: on a CPU that alone may be worth more
than all else.

PyTorch is no requirement of this project, and the two are never in one process.
It is that of `--torch_python`, the Python of an environment with

    pip install -r requirements-bench.txt

On a machine with one NVIDIA GPU, which needs `pip install "jax[cuda13]"` too:

    python -m benchmarks.peers --batch_sizes=128,512,1024,2048 --rounds=9 \\
      --steps=20 --untimed_steps=5 --at_once=3 --markdown=peers_gpu.md

There, JAX takes memory as it needs it (XLA_PYTHON_CLIENT_PREALLOCATE=false), or
the workers would not fit side by side, and cuDNN chooses by trying. What
products are made of is in `peer_variants.py` and in the facts of each row. A
worker takes up to a minute to start: where time is short, pick by `--variants`,
as `--variants=flax,torch_*channels_last_tf32,torch_*bfloat16`. A variant that
runs out of memory is said to have failed, and the others go on.
"""

import json
import os
import pathlib
import platform as machine
import sys
from collections.abc import Mapping

from absl import app, flags

from alexnet_jax.cli import command
from benchmarks import peer_probe, peer_tables, peer_variants, turns, worker


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  with command.in_one_line(ValueError, OSError):
    sizes = command.to_numbers("batch_sizes", values.batch_sizes)
    if values.markdown and not pathlib.Path(values.markdown).parent.is_dir():
      raise ValueError(
        f"{values.markdown!r} is in no folder that is there. Set --markdown."
      )
    platform = peer_probe.find_platform()
    peer_probe.check_heap(values.kept_heap, platform)
    chosen = peer_variants.choose(
      platform, values.variants, kept_heap=values.kept_heap
    )
    missing = peer_probe.find_missing(values.torch_python, platform, chosen)
  console, tables = command.make_console(), []
  load, *_ = os.getloadavg()
  for size in sizes:
    tables.append(peer_tables.Table(size, measure(size, chosen, missing)))
    if values.format == "table":
      for part in (tables[-1].to_rich(), *tables[-1].lines()):
        console.print(part, soft_wrap=True, highlight=False)
  about = (
    f"{values.rounds} rounds, {values.steps} steps a turn, "
    f"{worker.find_cores()} cores of {machine.machine()}, {platform}, a load "
    f"of {load:.1f} before"
  )
  if values.format == "json":
    data = {"about": about, "tables": [table.to_data() for table in tables]}
    print(json.dumps(data, indent=2))
  else:
    console.print(f"\n{about}", soft_wrap=True, highlight=False)
  if values.markdown:
    text = peer_tables.to_page(__doc__, tables, about)
    pathlib.Path(values.markdown).write_text(text)
  failed = [
    found.error
    for table in tables
    for found in table.found.values()
    if found.error
  ]
  if failed:
    command.fail(turns.WorkerError(f"{len(failed)} failed: {failed[0]}"))


def make_command(
  variant: peer_variants.Variant, *, batch_size: int
) -> turns.Command:
  """How the worker of a variant is started."""
  values = flags.FLAGS
  is_torch = variant.worker == peer_variants.TORCH
  settings = {
    "batch_size": batch_size,
    "width": values.width,
    "image_size": values.image_size,
    **variant.settings,
  }
  environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | dict(os.environ)
  return turns.Command(
    arguments=(
      *(values.torch_python if is_torch else sys.executable, "-m"),
      *(f"benchmarks.{variant.worker}", json.dumps(settings)),
    ),
    environment=environment | dict(variant.environment),
  )


def measure(
  batch_size: int,
  chosen: Mapping[str, peer_variants.Variant],
  missing: str | None,
) -> dict[str, turns.Found]:
  """Measures all variants; what cannot run or fails says why."""
  values, found = flags.FLAGS, {}
  commands = {
    name: make_command(variant, batch_size=batch_size)
    for name, variant in chosen.items()
    if missing is None or variant.worker != peer_variants.TORCH
  }
  for reference, others in peer_variants.group(chosen, values.at_once):
    names = [name for name in (reference, *others) if name in commands]
    try:
      measured = turns.measure(
        {name: commands[name] for name in names},
        reference=reference,
        rounds=values.rounds,
        untimed=values.untimed_steps,
        timed=values.steps,
        limit_seconds=values.limit_seconds,
        tell=lambda line: print(f"batch {batch_size}: {line}", file=sys.stderr),
      )
    except turns.WorkerError as error:
      measured = {name: turns.Found(error=str(error)) for name in names}
    for name, of_variant in measured.items():
      found[name] = (
        found[name].join(of_variant) if name in found else of_variant
      )
  return {
    name: found.get(name, turns.Found(missing=missing)) for name in chosen
  }


def define_flags() -> None:
  """Not on import: other benchmarks have flags of the same names."""
  flags.DEFINE_list("batch_sizes", "32,128", "Images in a step, a table each.")
  flags.DEFINE_list("variants", [], "Names, * for any part. Default: all.")
  flags.DEFINE_integer("rounds", 9, "Turns of each.", lower_bound=1)
  flags.DEFINE_integer(
    "steps", 1, "Of a turn, timed together; more for a GPU.", lower_bound=1
  )
  flags.DEFINE_integer(
    "untimed_steps",
    0,
    "Before those of each turn; for a GPU, whose clock falls when it is idle.",
    lower_bound=0,
  )
  flags.DEFINE_integer(
    "at_once",
    None,
    "Workers that there may be at once, where memory is short: one of ours and "
    "others beside it. Default: any number.",
    lower_bound=2,
  )
  flags.DEFINE_boolean(
    "kept_heap", False, "Run flax and PyTorch also with memory that is kept."
  )
  flags.DEFINE_string(
    "torch_python", sys.executable, "The Python that has PyTorch."
  )
  flags.DEFINE_float("width", 1.0, "Of the network; less to try this out.")
  flags.DEFINE_integer("image_size", 224, "Pixels; fewer to try this out.")
  flags.DEFINE_float(
    "limit_seconds", 1800.0, "Without an answer of a worker: it hangs."
  )
  flags.DEFINE_enum(
    "format", "table", ["table", "json"], "A table for people, or data."
  )
  flags.DEFINE_string("markdown", None, "File to write the tables to as well.")


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

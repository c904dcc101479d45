"""Our training step, as `main` runs it, as a worker of `benchmarks.peers`.

Implementations, XLA options and learning rates are those of a run of
`configs/...:imagenet`. The batch is bytes of 256 x 256 pixels, which the step
crops, mirrors and colors. This is more work than the other workers have.
"""

from alexnet_jax.distributed import malloc

if __name__ == "__main__":  # as in `main`: before threads start
  malloc.keep_freed_memory(["configs/one_device.py:imagenet"])

import jax

from alexnet_jax.bench import turns
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step, compiler_options
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from benchmarks.peers import worker
from configs import default

# Size of the training split of ILSVRC-2012, for the learning rate schedule.
IMAGES = 1_281_167


def make(
  *,
  batch_size: int,
  width: float,
  image_size: int,
  layout: str,
  compute_dtype: str,
  matmul_precision: str | None,
) -> tuple[worker.RunSteps, dict]:
  """A step, and facts about it.

  Args:
    batch_size, width, image_size: of the network and its input.
    layout: `config.layout.name`.
    compute_dtype: `config.compute_dtype`.
    matmul_precision: of JAX; None: its default, as in a run.
  """
  config = default.get_config("imagenet")
  config.layout.name = layout
  config.batch_size = batch_size
  config.compute_dtype = compute_dtype
  config.network.width = width
  config.network.image_size = image_size
  config.data.stored_size = -(-image_size * 256 // 224)
  network, placed = settings.check(config)
  mesh_lib.simulate_devices(placed.devices, only_cpu=False)
  jax.config.update("jax_default_matmul_precision", matmul_precision)
  program = run_lib.make_program(config, network, placed, num_images=IMAGES)
  options = compiler_options.choose(jax.devices(), mode="auto")
  step, audit = compiled_step.compile_step(program, options=options.used)
  audit_lib.check(audit)
  steps = turns.StepRunner(program, step)

  def run_steps(count: int) -> float:
    for _ in range(count):
      state, totals = steps.start()
    jax.block_until_ready(state)
    return float(totals[0]) / batch_size

  return run_steps, {
    "version": f"jax {jax.__version__}",
    "device": jax.devices()[0].device_kind,
    "matmul_precision": matmul_precision or "default",
    "implementations": str(program.implementations),
    "xla_options": dict(options.used),
    "kept_heap": malloc.keeps_freed_memory(),
  }


if __name__ == "__main__":
  worker.serve(make)

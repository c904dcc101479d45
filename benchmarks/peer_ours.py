"""Our own step, as `main` trains it, as a worker of `peers`.

Forms, XLA options and rates are those of a run of `configs/...:imagenet`. Its
batch is bytes of 256 x 256 pixels, which the step crops, mirrors and colors:
more than the others are asked for.
"""

from alexnet_jax.distributed import malloc

if __name__ == "__main__":  # as `main`: before there are threads
  malloc.keep(["configs/one_device.py:imagenet"])

import jax
import numpy as np

from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step, compiler_options
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from benchmarks import worker
from configs import default

# Of the training split of ILSVRC-2012: when the rate drops.
IMAGES = 1_281_167


def make(
  *,
  batch_size: int,
  width: float,
  image_size: int,
  layout: str,
  compute_dtype: str,
  matmul_precision: str | None,
) -> tuple[worker.TakeSteps, dict]:
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
  init_key, step_key = program.make_keys(config.seed)
  state = program.init(init_key)
  rng = np.random.default_rng(0)
  side = config.data.stored_size
  batch = jax.device_put(
    (
      rng.integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8),
      rng.integers(0, config.network.num_classes, batch_size, dtype=np.int32),
    ),
    program.batch_shardings,
  )

  def take_steps(count: int) -> float:
    nonlocal state
    for _ in range(count):
      state, totals = step(state, step_key, *batch)
    jax.block_until_ready(state)
    return float(totals[0]) / batch_size

  return take_steps, {
    "version": f"jax {jax.__version__}",
    "device": jax.devices()[0].device_kind,
    "matmul_precision": matmul_precision or "default",
    "implementations": str(program.implementations),
    "xla_options": dict(options.used),
    "kept_heap": malloc.is_kept(),
  }


if __name__ == "__main__":
  worker.serve(make)

"""A run of whole numbers that saves after every step, in real processes.

    python -m tests.saves WORKDIR LAST_STEP INDEX COUNT ADDRESS

It starts and ends as `main` does, in a third of the time: it reads no data and
compiles a single sum over all processes. Its end is known exactly.
`processes.start_saves` starts it.
"""

import pathlib
import sys

import numpy as np

from alexnet_jax.checkpoints import checkpoint, reader
from alexnet_jax.cli import command
from alexnet_jax.distributed import cluster
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import step as step_lib

# Of each process: as many bytes as a small network has.
_SIZE = 100_000


def make_state(values, step=0) -> step_lib.TrainState:
  return step_lib.TrainState(
    step=np.int32(step),
    is_finite=np.bool_(True),
    parameters={"values": values},
    optimizer=(),
    statistics={},
  )


def has_right_numbers(workdir: pathlib.Path, count: int, step: int) -> bool:
  """Whether a checkpoint has what NumPy finds, bit for bit."""
  values = np.arange(count * _SIZE, dtype=np.uint32)
  for _ in range(step):
    values = 5 * values + values.sum(dtype=np.uint32)
  found = reader.load(str(workdir), step, make_state(values))
  return int(found.step) == step and np.array_equal(
    found.parameters["values"], values
  )


def main(workdir: str, last_step: int, index: int, count: int, address: str):
  process = cluster.Process(index=index, count=count, address=address)
  with group_lib.start(process) as group:
    # Before this, JAX must not have been used.
    import jax
    import jax.numpy as jnp

    mesh = jax.make_mesh((count,), ("data",))
    whole, split = (
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
      for axes in ((), ("data",))
    )

    @jax.jit
    def advance(state):
      values = state.parameters["values"]
      values = 5 * values + jnp.sum(values, dtype=jnp.uint32)
      return state._replace(step=state.step + 1, parameters={"values": values})

    state = make_state(np.arange(count * _SIZE, dtype=np.uint32))
    shardings = jax.tree.map(lambda leaf: split if leaf.ndim else whole, state)
    state = jax.tree.map(
      lambda leaf, sharding: jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: leaf[index]
      ),
      *(state, shardings),
    )
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      ),
      state,
    )
    with command.exit_on_error(OSError, group=group):
      checkpoints = checkpoint.Checkpoints(workdir, keep=2, group=group)
      first_step, state = checkpoints.resume(like, print) or (0, state)
      try:
        for step in range(first_step + 1, last_step + 1):
          state = advance(state)
          checkpoints.save(step, state)
      finally:
        checkpoints.close()


if __name__ == "__main__":
  main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])

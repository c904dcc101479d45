"""How runs of several processes end, and go on."""

import concurrent.futures
import random
import re
import signal
import sys
import time

import numpy as np
import pytest

from alexnet_jax.checkpoints import reader
from tests import processes

pytestmark = pytest.mark.hosts


@pytest.mark.parametrize("lost", [0, 1])
def test_process_that_is_killed_is_named_and_the_run_goes_on(lost, folder):
  tmp = folder(f"killed {lost}")
  many = {"num_epochs": 1000.0, "checkpoint_every_steps": 5}
  running = processes.start_training(tmp, many, count=2)
  processes.wait_for_step(tmp, 12, running)
  running[lost].kill()
  code, _, errors = processes.finish(running, timeout=60)[1 - lost]
  assert code == 69
  assert re.search(
    rf"^error: process {1 - lost} of 2 \(.+\) ends because process {lost} of 2 "
    rf"\(.+\) is lost: .* The same command resumes",
    processes.last_error(errors),
  )
  fields = many | {"num_epochs": 0.1}
  for ended in processes.finish(processes.start_training(tmp, fields, count=2)):
    assert ended.code == 0, ended.errors
  out = processes.train(tmp, fields, "--simulate_devices=2").out
  assert "finished already, at step" in out


def test_process_that_is_stopped_is_named(folder):
  tmp = folder("stopped")
  running = processes.start_training(tmp, {"num_epochs": 1000.0}, count=2)
  processes.wait_for_step(tmp, 4, running)
  running[0].send_signal(signal.SIGSTOP)
  ((code, _, errors),) = processes.finish(running[1:], timeout=60)
  assert code == 69
  assert "process 0 of 2" in processes.last_error(errors)
  assert "nothing was heard from it" in processes.last_error(errors)
  running[0].kill()
  running[0].communicate()


# The other phases: tests/faults/test_signals.py; SIGTERM: launch/test_mpi.py.
def test_signal_to_one_process_saves_in_all_and_the_run_goes_on(folder):
  tmp = folder("signalled")
  many = {
    "num_epochs": 1000.0,
    "checkpoint_every_steps": 100_000,
    # 23 batches of ten views each take some seconds.
    "eval_every_steps": 4,
    "validation_views": 10,
    "data.validation_split": "validation",
  }
  running = processes.start_training(tmp, many, count=2)
  processes.wait_for_step(tmp, 4, running)
  running[1].send_signal(signal.SIGINT)
  done = processes.finish(running, timeout=60)
  for code, _, errors in done:
    assert code == 75, errors
  (step,) = re.findall(
    r"stopped by SIGINT in the validation after step (\d+)", done[0][1]
  )
  running = processes.start_training(tmp, many, count=2)
  processes.wait_for_step(tmp, int(step) + 2, running)
  for process in running:
    process.kill()
  (_, out, _), *_ = processes.finish(running)
  assert f"resumes after step {step} of" in out


def test_error_of_one_process_ends_all_in_a_line(folder):
  tmp = folder("error")
  for ended in processes.finish(processes.start_training(tmp, count=2)):
    assert ended.code == 0, ended.errors
  # A run of another seed: process 0 refuses it, and says so.
  running = processes.start_training(tmp, {"seed": 1}, count=2)
  start = time.monotonic()
  (first, _, own), (second, _, others) = processes.finish(running, timeout=60)
  assert time.monotonic() - start < 60
  assert first == second == 1
  assert re.search(r"^error: process 0 of 2 .* of another config", own)
  assert re.search(
    r"^error: process 1 of 2 .* ends because process 0 of 2 .* ended: the "
    r"workdir .*seed: 0 in the workdir, 1 now",
    processes.last_error(others),
  )


# A run of whole numbers, so that its end is known exactly, which sums over all
# processes and saves in every step.
SAVES = """
import sys
from alexnet_jax.cli import command
from alexnet_jax.distributed import cluster
from alexnet_jax.distributed import group as group_lib
index, count, last = map(int, sys.argv[1:4])
process = cluster.Process(index=index, count=count, address=sys.argv[4])
with group_lib.start(process) as group:
  import jax
  import jax.numpy as jnp
  from alexnet_jax.checkpoints import checkpoint
  from alexnet_jax.program import step
  P = jax.sharding.PartitionSpec
  mesh = jax.make_mesh((count,), ("data",))

  def begin():
    values = jnp.arange(count * 5000, dtype=jnp.uint32)
    return step.TrainState(
      step=jnp.int32(0),
      is_finite=jnp.bool_(True),
      parameters={"values": jax.sharding.reshard(values, P("data"))},
      optimizer=(),
      statistics={},
    )

  def advance(state):
    values = state.parameters["values"]
    values = 5 * values + jnp.sum(values, dtype=jnp.uint32)
    return state._replace(step=state.step + 1, parameters={"values": values})

  with command.exit_on_error(OSError, group=group):
    with jax.set_mesh(mesh):
      advance = jax.jit(advance)
      state = jax.jit(begin)()
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      ),
      state,
    )
    checkpoints = checkpoint.Checkpoints(sys.argv[5], keep=2, group=group)
    first, state = checkpoints.resume(like, print) or (0, state)
    try:
      for number in range(first + 1, last + 1):
        state = advance(state)
        checkpoints.save(number, state)
    finally:
      checkpoints.close()
"""


def start_saves(workdir, count, last):
  address = f"localhost:{processes.free_port()}"
  return [
    processes.open_process(
      [
        *(sys.executable, "-c", SAVES, str(index), str(count), str(last)),
        *(address, str(workdir)),
      ],
      workdir.parent / "cache",
      variables={"JAX_PLATFORMS": "cpu"},
    )
    for index in range(count)
  ]


def kill_around_saves(workdir, count, rng, kills):
  """Kills one of `count` processes again and again; returns what was wrong."""
  faults, last = [], 0
  for _ in range(kills):
    before = reader.find_latest_step(str(workdir)) or 0
    running = start_saves(workdir, count, 1_000_000)
    processes.wait_until(
      lambda before=before: (
        (reader.find_latest_step(str(workdir)) or 0) > before + 2
      ),
      running,
    )
    time.sleep(rng.uniform(0, 0.1))  # a save takes about as long
    lost = rng.randrange(count)
    running[lost].kill()
    for index, ended in enumerate(processes.finish(running, timeout=90)):
      if index != lost and (
        ended.code != 69 or f"process {lost} of" not in ended.errors
      ):
        faults.append((count, index, lost, ended))
  last = reader.find_latest_step(str(workdir)) + 3
  for ended in processes.finish(start_saves(workdir, count, last)):
    if ended.code or "damaged" in ended.out:
      faults.append(ended)
  expected = np.arange(count * 5000, dtype=np.uint32)
  for _ in range(last):
    expected = 5 * expected + expected.sum(dtype=np.uint32)
  like = reader.step_lib.TrainState(
    step=np.int32(0),
    is_finite=np.bool_(True),
    parameters={"values": expected},
    optimizer=(),
    statistics={},
  )
  found = reader.load(str(workdir), last, like)
  if not np.array_equal(found.parameters["values"], expected):
    faults.append((count, "other numbers"))
  return faults


def test_twelve_kills_around_saves_end_all_with_69_and_lose_nothing(tmp_path):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = [
      pool.submit(
        kill_around_saves,
        *(tmp_path / str(seed), count, random.Random(seed), 3),
      )
      for seed, count in enumerate((2, 4, 2, 4))
    ]
    for one in found:
      assert not one.result()

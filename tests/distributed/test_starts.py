"""Processes find each other, or end with a line that says why not."""

import re
import socket
import time

import pytest

from tests import processes

pytestmark = pytest.mark.hosts


def open_mpi_5(count):
  """The variables that Open MPI 5 sets, for a launcher on this host."""
  pid = processes.free_port()  # any number
  return lambda index: {
    "OMPI_COMM_WORLD_SIZE": str(count),
    "OMPI_COMM_WORLD_RANK": str(index),
    "OMPI_COMM_WORLD_LOCAL_SIZE": str(count),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    "PMIX_RANK": str(index),
    "PMIX_NAMESPACE": f"prterun-{socket.gethostname()}-{pid}@1",
  }


def torchrun(count):
  """As `torchrun`, which listens at its port itself."""
  port = processes.free_port()
  return lambda index: {
    "WORLD_SIZE": str(count),
    "RANK": str(index),
    "LOCAL_WORLD_SIZE": str(count),
    "LOCAL_RANK": str(index),
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": str(port),
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
  }


def mpich(count):
  """As `mpiexec` of MPICH on a single host, whose process is this one."""
  return lambda index: {
    "PMI_SIZE": str(count),
    "PMI_RANK": str(index),
    "MPI_LOCALNRANKS": str(count),
    "MPI_LOCALRANKID": str(index),
  }


# Where nothing answers, which a process that asked it would find out.
PROXIES = {
  change(name): "http://127.0.0.1:9"
  for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
  for change in (str.lower, str.upper)
} | {"no_proxy": "example.org"}


@pytest.mark.parametrize(
  ("variables", "more"),
  [(open_mpi_5, {}), (mpich, PROXIES), (torchrun, PROXIES)],
)
def test_variables_of_launchers_start_a_run(variables, more, folder):
  tmp = folder(variables.__name__)
  arguments = processes.flags("two_device", tmp, {"num_epochs": 0.1})
  of = variables(2)
  running = processes.start(
    tmp,
    2,
    [*arguments, "--distributed=env"],
    variables=lambda index: of(index) | more,
  )
  for code, _, errors in processes.finish(running):
    assert (code, errors) == (0, "")
  assert processes.metrics(tmp)[-1]["validation_images"] == 21


def test_doctor_finds_no_problem_behind_a_proxy_and_names_the_launcher(folder):
  tmp = folder("doctor")
  of, secret = mpich(2), {"http_proxy": "http://me:secret@127.0.0.1:9"}
  running = processes.start(
    tmp,
    2,
    processes.flags("two_device", tmp),
    module="doctor",
    variables=lambda index: of(index) | PROXIES | secret,
  )
  (code, out, errors), other = processes.finish(running)
  assert (code, errors, *other) == (0, "", 0, "", "")
  assert "processes: 2, according to PMI_SIZE, PMI_RANK (MPICH" in out
  assert re.search(r"http_proxy +http://127\.0\.0\.1:9 ", out)
  assert "secret" not in out


NOWHERE = {
  "JAX_COORDINATOR_ADDRESS": "localhost:1",
  "JAX_NUM_PROCESSES": "2",
  "JAX_PROCESS_ID": "1",
}
WRONG = {
  "nothing set": (
    dict.fromkeys(NOWHERE),
    "JAX_NUM_PROCESSES is not set, expected how many",
  ),
  "no number": ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID is not set"),
  "no address": (
    {"JAX_COORDINATOR_ADDRESS": None},
    "JAX_COORDINATOR_ADDRESS is not set, expected host:port",
  ),
  "number too high": (
    {"JAX_PROCESS_ID": "2"},
    "JAX_PROCESS_ID is 2, but there are 2 processes",
  ),
  "contradiction": (
    {"OMPI_COMM_WORLD_SIZE": "3"},
    "JAX_NUM_PROCESSES=2 and OMPI_COMM_WORLD_SIZE=3 contradict each other",
  ),
  "nobody there": (
    {},
    "process 0 of 2 cannot be reached at localhost:1 within 25 s .*refused",
  ),
  "unknown host": (
    {"JAX_COORDINATOR_ADDRESS": "nobody.invalid:77"},
    "process 0 of 2 cannot be reached at nobody.invalid:77 within 25 s",
  ),
  "alone": (
    {"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "localhost:{port}"},
    "process 1 of 2 did not connect to localhost:[0-9]+ within 25 s",
  ),
}


# These wait for the others to call; all else is known at once.
WAITING = ("nobody there", "unknown host", "alone")


@pytest.mark.parametrize("waiting", [True, False])
def test_wrong_settings_end_in_one_line_within_half_a_minute(waiting, folder):
  tmp = folder(f"wrong {waiting}")
  arguments = processes.flags("two_device", tmp) + ["--distributed=env"]
  running = {}
  start = time.monotonic()
  for case, (changes, _) in WRONG.items():
    if (case in WAITING) == waiting:
      variables = {
        name: value.format(port=processes.free_port())
        for name, value in (NOWHERE | changes).items()
        if value is not None
      }
      (running[case],) = processes.start(
        tmp, 1, arguments, variables=lambda _, chosen=variables: chosen
      )
  done = processes.finish(running.values(), timeout=60)
  # 25 s, and imports of several processes at once, beside other tests.
  assert time.monotonic() - start < 45
  for case, (code, out, errors) in zip(running, done, strict=True):
    assert (code, out) == (1, ""), case
    (line,) = errors.strip().splitlines()
    assert re.search(f"^error: {WRONG[case][1]}", line), (case, line)
  assert not (tmp / "workdir").exists()


def test_processes_that_differ_are_refused(folder):
  tmp = folder("differ")
  address = f"localhost:{processes.free_port()}"
  running = []
  for seed in range(2):
    variables = processes.cluster_variables(2, seed, address)
    running += processes.start_training(
      tmp, {"seed": seed}, variables=lambda _, chosen=variables: chosen
    )
  for code, _, errors in processes.finish(running):
    assert code == 1
    (line,) = errors.strip().splitlines()
    assert "config.seed is '1' in process 1 (" in line
    assert "and '0' in process 0. Start all processes alike." in line


@pytest.mark.parametrize(
  ("count", "name", "value"),
  [
    (2, "XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
    # Commands set the generator themselves; a shell that differs is a mistake.
    (4, "JAX_DEFAULT_PRNG_IMPL", "rbg"),
  ],
)
def test_processes_with_other_settings_of_jax_are_refused_by_all(
  count, name, value, folder
):
  tmp = folder(f"other {name}")
  address = f"localhost:{processes.free_port()}"
  arguments = processes.flags("two_device", tmp)
  running = processes.start(
    tmp,
    count,
    arguments,
    variables=lambda index: (
      processes.cluster_variables(count, index, address)
      | ({name: value} if index == count - 1 else {})
    ),
  )
  host = socket.gethostname()
  for code, out, errors in processes.finish(running):
    assert (code, out) == (1, "")
    assert errors == (
      f"error: {name} is {value!r} in process {count - 1} ({host}), and not "
      "set in process 0. Start all processes alike.\n"
    )
  assert not (tmp / "workdir").exists()

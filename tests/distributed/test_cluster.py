"""Which process this is, from the variables that launchers set."""

import dataclasses
import os
import re

import pytest

from alexnet_jax.distributed import cluster

JAX = {
  "JAX_COORDINATOR_ADDRESS": "node0:1234",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "2",
}
# As `mpirun -n 4` of Open MPI 5 sets them.
OPEN_MPI_5 = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
  "PMIX_RANK": "3",
  "PMIX_NAMESPACE": "prterun-node-a7-4001@1",
}
# As `mpirun -n 4` of Open MPI 4 sets them; 61440 + 1531576320 / 4096 % 4096.
OPEN_MPI_4 = {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "gpu[07-09],login",
  "SLURM_NTASKS": "8",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
}
# As `torchrun --nnodes=2 --nproc-per-node=4` sets them.
TORCHRUN = {
  "WORLD_SIZE": "8",
  "RANK": "5",
  "LOCAL_WORLD_SIZE": "4",
  "LOCAL_RANK": "1",
  "MASTER_ADDR": "node-a7",
  "MASTER_PORT": "29500",
  "TORCHELASTIC_RUN_ID": "none",
  "TORCHELASTIC_USE_AGENT_STORE": "True",
}
# As `mpiexec -n 4` of MPICH 4.0 sets them on one host.
MPICH = {
  "PMI_SIZE": "4",
  "PMI_RANK": "3",
  "PMI_FD": "8",
  "MPI_LOCALNRANKS": "4",
  "MPI_LOCALRANKID": "3",
}
MVAPICH2 = {
  "MV2_COMM_WORLD_SIZE": "4",
  "MV2_COMM_WORLD_RANK": "3",
  "MV2_COMM_WORLD_LOCAL_SIZE": "4",
  "MV2_COMM_WORLD_LOCAL_RANK": "3",
}
FLUX = {
  "FLUX_JOB_SIZE": "4",
  "FLUX_TASK_RANK": "3",
  "FLUX_TASK_LOCAL_ID": "3",
  "FLUX_JOB_NNODES": "1",
  "PMI_SIZE": "4",
  "PMI_RANK": "3",
}
JSRUN = {
  "JSM_NAMESPACE_SIZE": "4",
  "JSM_NAMESPACE_RANK": "3",
  "JSM_NAMESPACE_LOCAL_RANK": "1",
}


def found(mode, environ, monkeypatch):
  """As in a process with these variables and no others of the kind."""
  for name in {*JAX, *OPEN_MPI_5, *OPEN_MPI_4, *SLURM}:
    monkeypatch.delenv(name, raising=False)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)  # JAX reads the environment itself
  return cluster.find_process(mode, environ)


@pytest.mark.parametrize("mode", ["auto", "env"])
def test_variables_of_jax_and_open_mpi_5_are_read(mode, monkeypatch):
  expected = cluster.Process(index=2, count=4, address="node0:1234")
  assert found(mode, JAX, monkeypatch) == expected
  address = f"node-a7:{61440 + 4001}"
  assert found(mode, OPEN_MPI_5, monkeypatch) == cluster.Process(
    index=3, count=4, address=address, local_devices=(1,)
  )


def test_address_that_is_set_comes_before_that_of_a_launcher(monkeypatch):
  environ = OPEN_MPI_5 | {"JAX_COORDINATOR_ADDRESS": "10.0.0.7:99"}
  assert found("env", environ, monkeypatch).address == "10.0.0.7:99"


def test_pmix_alone_needs_count_and_address(monkeypatch):
  environ = {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.12.0"}
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is not set"):
    found("env", environ, monkeypatch)
  environ["JAX_NUM_PROCESSES"] = "2"
  with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS is not set"):
    found("env", environ, monkeypatch)
  environ["JAX_COORDINATOR_ADDRESS"] = "a:1"
  assert found("env", environ, monkeypatch).index == 1


def test_what_jax_detects_is_taken(monkeypatch):
  port = 61440 + 1531576320 // 4096 % 4096
  for environ, expected in (
    (OPEN_MPI_4, (3, 4, f"10.96.0.1:{port}")),
    (SLURM, (5, 8, "gpu07:61441")),
  ):
    place = found("auto", environ, monkeypatch)
    assert (place.index, place.count, place.address) == expected


@pytest.mark.parametrize("mode", ["auto", "env"])
def test_torchrun_has_everything(mode, monkeypatch):
  at = cluster.Process(index=5, count=8, address="", local_devices=(1,))

  def expected(port):
    return dataclasses.replace(at, address=f"node-a7:{port}")

  # torchrun listens at its port, so that another one has to be used.
  other = 61440 + 29500 % 4096
  assert found(mode, TORCHRUN, monkeypatch) == expected(other)
  free = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"}
  assert found(mode, free, monkeypatch) == expected(29500)
  chosen = TORCHRUN | {"JAX_COORDINATOR_PORT": "77"}
  assert found(mode, chosen, monkeypatch) == expected(77)
  # One torchrun on each host, started by another launcher.
  for outer in (
    OPEN_MPI_5,
    SLURM,
    {"PMI_SIZE": "2", "PMI_RANK": "1"},
  ):
    assert found(mode, outer | TORCHRUN, monkeypatch) == expected(other)


@pytest.mark.parametrize("environ", [MPICH, MVAPICH2, FLUX])
def test_launcher_without_an_address_is_read_on_one_host(environ, monkeypatch):
  process = found("auto", environ, monkeypatch)
  assert (process.index, process.count) == (3, 4)
  assert process.local_devices == (3,)
  # The parent of this test has none of these variables.
  assert process.address == f"localhost:{61440 + os.getppid() % 4096}"


@pytest.mark.parametrize(
  ("environ", "message"),
  [
    (
      MPICH | {"MPI_LOCALNRANKS": "2"},
      "PMI_SIZE is 4 and PMI_RANK is 3: MPICH.* has started 4 processes, of "
      "which 2 are on this host, but JAX_COORDINATOR_ADDRESS does not say",
    ),
    (
      FLUX | {"FLUX_JOB_NNODES": "2"},
      "FLUX_JOB_SIZE is 4 and FLUX_TASK_RANK is 3: Flux has started",
    ),
    (
      JSRUN,
      "JSM_NAMESPACE_SIZE is 4 and .* jsrun of LSF has started 4 processes",
    ),
    (
      {"WORLD_SIZE": "2", "RANK": "0"},
      "WORLD_SIZE is 2 and RANK is 0: torchrun has .* but MASTER_ADDR does not",
    ),
  ],
)
def test_launcher_on_several_hosts_needs_an_address(
  environ, message, monkeypatch
):
  with pytest.raises(ValueError, match=message):
    found("auto", environ, monkeypatch)
  address = {"JAX_COORDINATOR_ADDRESS": "node0:77"}
  assert found("auto", environ | address, monkeypatch).address == "node0:77"


@pytest.mark.parametrize(
  ("environ", "message"),
  [
    ({"PMIX_RANK": "1"}, "PMIX_RANK is '1': PMIx has started this process"),
    ({"PMI_RANK": "0"}, "PMI_RANK is '0': MPICH, Intel MPI or PALS"),
    ({"PALS_RANKID": "0"}, "PALS_RANKID is '0': PALS has"),
    (
      {"JOB_COMPLETION_INDEX": "0"},
      "JOB_COMPLETION_INDEX is '0': an indexed job of Kubernetes",
    ),
    ({"SM_HOSTS": '["algo-1","algo-2"]'}, 'SM_HOSTS is .*"algo-2".*SageMaker'),
    (
      {"WORLD_SIZE": "8", "RANK": "3"} | MPICH,
      r"WORLD_SIZE=8 \(torchrun\) and PMI_SIZE=4 \(MPICH.*contradict",
    ),
    (MPICH | {"PMI_RANK": "4"}, "PMI_RANK is 4, but there are 4 processes"),
    (MPICH | {"PMI_SIZE": "two"}, "PMI_SIZE is 'two', expected how many"),
    (TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is not set, expected a port"),
  ],
)
def test_one_of_several_does_not_train_alone(environ, message, monkeypatch):
  with pytest.raises(ValueError, match=message) as caught:
    found("auto", environ, monkeypatch)
  assert re.search(r"(Set|Unset) ", str(caught.value))
  assert found("off", environ, monkeypatch) == cluster.Process()


@pytest.mark.parametrize(
  ("environ", "count"),
  [
    ({"WORLD_SIZE": "1"}, 1),
    ({"WORLD_SIZE": "4"}, 1),
    ({"RANK": "major"}, 1),
    ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost"}, 1),
    ({"PMI_SIZE": "1", "PMI_RANK": "0", "PMIX_RANK": "0"}, 1),
    ({"JSM_NAMESPACE_SIZE": "1", "PMIX_RANK": "0"}, 1),
    ({"SM_HOSTS": '["algo-1"]'}, 1),
    (SLURM | {"PMI_SIZE": "1", "PMI_RANK": "0"}, 8),
    (SLURM | {"PMI_SIZE": "8", "PMI_RANK": "5"}, 8),  # srun --mpi=pmi2
    (SLURM | {"WORLD_SIZE": "8", "RANK": "0"}, 8),  # set in a script
    (OPEN_MPI_4 | {"WORLD_SIZE": "8", "RANK": "0"}, 4),
    (JAX | MPICH | TORCHRUN, 4),
  ],
)
def test_variables_that_are_left_over_change_nothing(
  environ, count, monkeypatch
):
  process = found("auto", environ, monkeypatch)
  assert process.count == count
  if "SLURM_PROCID" in environ:
    assert (process.index, process.address) == (5, "gpu07:61441")


@pytest.mark.parametrize(
  ("more", "devices"),
  [
    ({}, (1,)),
    ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, (1,)),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, None),
    ({"CUDA_VISIBLE_DEVICES": "3"}, None),
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
    ({"ROCR_VISIBLE_DEVICES": "2"}, None),
    ({"JAX_LOCAL_DEVICE_IDS": "2,3"}, (2, 3)),
  ],
)
def test_processes_of_one_host_share_its_devices(more, devices, monkeypatch):
  assert found("auto", SLURM | more, monkeypatch).local_devices == devices


@pytest.mark.parametrize(
  ("mode", "environ"),
  [
    ("auto", {}),
    ("auto", {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}),
    ("off", JAX | {"JAX_PROCESS_ID": "no number"}),
  ],
  ids=["no variables", "one of one", "off"],
)
def test_no_cluster_or_off_is_one_process(mode, environ, monkeypatch):
  assert found(mode, environ, monkeypatch) == cluster.Process()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES is not set"),
    ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is not set"),
    ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS is not set"),
    ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
    ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is '0'"),
    ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1'"),
    ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4, .* 4 processes"),
    (
      {"OMPI_COMM_WORLD_SIZE": "2"},
      "JAX_NUM_PROCESSES=4 and OMPI_COMM_WORLD_SIZE=2 contradict each other",
    ),
    ({"PMIX_RANK": "0"}, "JAX_PROCESS_ID=2 and PMIX_RANK=0 contradict"),
    ({"JAX_COORDINATOR_ADDRESS": "node0"}, "is 'node0', expected host:port"),
    ({"JAX_COORDINATOR_ADDRESS": "node0:0"}, "is 'node0:0', expected"),
    ({"JAX_COORDINATOR_ADDRESS": "node0:65536"}, "is 'node0:65536', expected"),
    ({"JAX_LOCAL_DEVICE_IDS": "x"}, "JAX_LOCAL_DEVICE_IDS is 'x', expected"),
    ({"JAX_COORDINATOR_ADDRESS": ":80"}, "is ':80', expected host:port"),
    ({"JAX_COORDINATOR_ADDRESS": "fe80::1"}, "is 'fe80::1', expected"),
  ],
)
def test_wrong_variable_is_named(changes, message, monkeypatch):
  with pytest.raises(ValueError, match=message) as caught:
    found("env", JAX | changes, monkeypatch)
  assert re.search(r"(Set|Unset) \w+", str(caught.value))


def test_address_without_the_rest_is_refused(monkeypatch):
  environ = {"JAX_COORDINATOR_ADDRESS": "node0:1"}
  with pytest.raises(ValueError, match="neither JAX_NUM_PROCESSES nor"):
    found("auto", environ, monkeypatch)


def test_port_may_come_apart():
  assert cluster.check_address("node0", "77") == "node0:77"
  assert cluster.check_address("[fe80::1]:77") == "[fe80::1]:77"
  assert cluster.check_address("fe80::1", "77") == "[fe80::1]:77"

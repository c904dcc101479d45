"""The files of launch/ do what their heads say.

Python and gcloud are fakes here; `test_slurm`, `test_mpi` and `test_processes`
start real processes.
"""

import operator
import os
import re
import subprocess
import time

import pytest

from alexnet_jax.distributed import group
from configs import default
from tests import processes
from tests.processes import ROOT

FOLDER = ROOT / "launch"
SCRIPTS = sorted(FOLDER.glob("*.s*"))
FILES = sorted(set(FOLDER.iterdir()) - {FOLDER / "README.md"})
NAME = operator.attrgetter("name")

# A process that prints its number, and does what MODE says.
PROCESS = """\
#!/usr/bin/env bash
echo "process $JAX_PROCESS_ID of $JAX_NUM_PROCESSES" \
  "at $JAX_COORDINATOR_ADDRESS: $*"
case $MODE$JAX_PROCESS_ID in
  lost1) kill -KILL $$ ;;
  lost*) sleep 0.5; echo "$JAX_PROCESS_ID ends"; exit 69 ;;
  error1) exit 1 ;;
  error*) exit 69 ;;
  wait*)
    trap 'echo "$JAX_PROCESS_ID saves"; exit 75' TERM
    for _ in {1..100}; do sleep 0.1; done
    ;;
esac
"""


@pytest.fixture
def interpreter(tmp_path):
  return write_script(tmp_path / "python", PROCESS)


def write_script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


@pytest.mark.parametrize("script", SCRIPTS, ids=NAME)
def test_script_can_be_run(script):
  assert os.access(script, os.X_OK)
  checked = subprocess.run(["bash", "-n", script], capture_output=True)
  assert checked.returncode == 0, checked.stderr
  assert script.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("file", FILES, ids=NAME)
def test_file_says_what_it_does_and_is_in_the_table(file):
  head = re.match(r"(#.*\n)+", file.read_text())[0]
  sections = re.findall(r"^# (Needs|Call|Ends): +\S", head, re.MULTILINE)
  assert sections == ["Needs", "Call", "Ends"]
  rows = (FOLDER / "README.md").read_text().splitlines()
  (row,) = [row for row in rows if row.startswith(f"| `{file.name}` |")]
  assert row.count("|") == 6


COMMAND = r"(?:alexnet_jax\.(?:main|\${MODULE:-main})|launch/\w+\.\w+)\S* .*"


def flags_of_main():
  """Names, read rather than imported: flags are defined once in a process."""
  return {
    name
    for source in ("main.py", "cli/command.py")
    for name in re.findall(
      r'(?:DEFINE|define)_\w+\(\s*"(\w+)"',
      (ROOT / "alexnet_jax" / source).read_text(),
    )
  }


@pytest.mark.parametrize("file", [*FILES, FOLDER / "README.md"], ids=NAME)
def test_flags_for_our_commands_exist(file):
  text = re.sub(r"\\\n[# ]*", "", file.read_text())  # one line for a command
  if file.suffix == ".yaml":
    text = text.replace("\n", " ")
  known = flags_of_main()
  assert {"config", "workdir", "distributed"} <= known
  fields = default.get_config()
  found = [
    flag
    for line in text.splitlines()
    for call in re.findall(COMMAND, line)
    for flag in re.findall(r"--([a-z_][\w.]*)(?:=(\S+))?", call)
  ]
  assert found
  for name, value in found:
    if name == "config" and "..." not in value:
      assert (ROOT / value.partition(":")[0]).exists(), value
    if name.startswith("config."):
      field = fields
      for part in name.split(".")[1:]:
        field = getattr(field, part)
    else:
      assert name in known, name


def local(interpreter, mode, *flags, count=3):
  return processes.open_process(
    [FOLDER / "local.sh", str(count), "2", *flags],
    interpreter.parent / "cache",
    variables={"MODE": mode, "PYTHON": str(interpreter)},
  )


def test_local_starts_each_process_once_with_all_flags(interpreter):
  flag = "--config.layout.conv1.batch=('data', 'column')"
  running = [local(interpreter, "finish", flag) for _ in range(2)]
  ports = set()
  for ended in processes.finish(running, timeout=20):
    assert ended.code == 0
    for index, line in enumerate(sorted(ended.out.splitlines())):
      assert line.startswith(f"process {index} of 3 at localhost:")
      assert line.endswith(f"--simulate_devices=2 {flag}")
    ports |= set(re.findall(r"localhost:\d+", ended.out))
  assert len(ports) == 2  # two runs at once do not meet


def test_local_waits_for_all_and_ends_with_the_lowest_code(interpreter):
  running = [local(interpreter, mode) for mode in ("lost", "error")]
  lost, failed = processes.finish(running, timeout=20)
  assert (lost.code, failed.code) == (group.LOST, 1)
  assert "0 ends" in lost.out and "2 ends" in lost.out


def test_local_lets_all_save_when_it_is_stopped(interpreter):
  run = local(interpreter, "wait", count=2)
  started = [run.stdout.readline() for _ in range(2)]
  assert all(line.startswith("process") for line in started)
  time.sleep(0.3)  # until they listen
  run.terminate()
  (ended,) = processes.finish([run], timeout=20)
  assert sorted(ended.out.splitlines()) == ["0 saves", "1 saves"]
  assert ended.code == group.STOPPED


PYTHON_WITH_GPUS = """\
#!/usr/bin/env bash
if [[ $1 == -c ]]; then
  [[ $2 == 'import jax; jax.devices("gpu")' && $GPUS == 1 ]]
else
  echo "$*"
fi
"""


def test_gpu_is_one_process_that_refuses_to_simulate(tmp_path):
  python = write_script(tmp_path / "python", PYTHON_WITH_GPUS)

  def start(gpus):
    variables = {"PYTHON": str(python), "GPUS": gpus}
    command = [FOLDER / "gpu.sh", "--config=a b"]
    return processes.run(command, tmp_path / "cache", variables=variables)

  said = "-m alexnet_jax.main --distributed=off --config=a b\n"
  assert start("1").out == said
  assert start("0")[:2] == (1, "")


def test_batch_job_requeues_what_can_go_on():
  text = (FOLDER / "slurm.sbatch").read_text()
  assert f"  {group.STOPPED}) scontrol requeue" in text
  assert f"  {group.LOST} | " in text


def test_jobset_agrees_with_itself():
  yaml = pytest.importorskip("yaml")
  text = (FOLDER / "jobset.yaml").read_text()
  jobset = yaml.safe_load(text)
  spec = jobset["spec"]
  (job,) = spec["replicatedJobs"]
  hosts = job["template"]["spec"]
  pod = hosts["template"]["spec"]
  (container,) = pod["containers"]
  variables = {each["name"]: each.get("value") for each in container["env"]}
  assert hosts["parallelism"] == hosts["completions"]
  assert variables["JAX_NUM_PROCESSES"] == str(hosts["parallelism"])
  # As JobSet names its pods: set-job-number of the job-number of the pod.set
  name = jobset["metadata"]["name"]
  host, port = variables["JAX_COORDINATOR_ADDRESS"].split(":")
  assert host == f"{name}-{job['name']}-0-0.{name}"
  assert container["ports"] == [{"containerPort": int(port)}]
  assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
  codes = hosts["podFailurePolicy"]["rules"][0]["onExitCodes"]
  assert codes["values"] == [group.LOST, group.STOPPED]
  assert codes["containerName"] == container["name"]
  # The topology has as many chips as the hosts have.
  sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert int(sides[0]) * int(sides[1]) == chips * hosts["parallelism"]
  assert f"config.layout.mesh.data={chips * hosts['parallelism'] // 2}" in text


GCLOUD = """\
#!/usr/bin/env bash
# compute tpus tpu-vm VERB NAME ...; every worker is a folder.
echo "$4" >> "$CLOUD/calls"
for flag; do
  case $flag in
    --worker=all) workers="0 1" ;;
    --worker=*) workers=${flag#*=} ;;
    --command=*) command=${flag#*=} ;;
  esac
done
case $4 in
  describe) [[ -d $CLOUD/0 ]] ;;
  create) mkdir "$CLOUD/0" "$CLOUD/1" ;;
  scp) for worker in $workers; do cp "$5" "$CLOUD/$worker"; done ;;
  ssh)
    for worker in $workers; do
      cd "$CLOUD/$worker" || exit 99
      WORKER=$worker bash -c "$command"
    done
    ;;
esac
"""
PYTHON_OF_A_WORKER = """\
#!/usr/bin/env bash
if [[ $* == *"uv venv"* ]]; then
  mkdir -p .venv/bin
  cp "$0" .venv/bin/python
elif [[ $* == *alexnet_jax.main* ]]; then
  sleep 0.5
  echo "worker $WORKER: $*"
  exit $((40 + WORKER))
fi
"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="copies what git has")
def test_tpu_slice_runs_on_every_worker_and_follows_the_first(tmp_path):
  programs, cloud = tmp_path / "programs", tmp_path / "cloud"
  write_script(programs / "gcloud", GCLOUD)
  write_script(programs / "python3", PYTHON_OF_A_WORKER)
  cloud.mkdir()
  flags = ["--config=configs/one_device.py", "--config.augment.mean=(1, '2')"]
  ended = processes.run(
    [FOLDER / "tpu_slice.sh", "name", "zone", "v5litepod-16", "v2", *flags],
    tmp_path / "cache",
    timeout=60,
    variables={
      "CLOUD": str(cloud),
      "MOUNT": "touch mounted",
      "PATH": f"{programs}:{os.environ['PATH']}",
    },
  )
  assert ended.code == 40, ended.errors  # as worker 0
  said = f"-m alexnet_jax.main --start_timeout_seconds=300 {' '.join(flags)}\n"
  assert ended.out == f"worker 0: {said}"
  calls = (cloud / "calls").read_text().split()
  assert calls == ["describe", "create", "scp", "ssh", "ssh", "ssh"]
  for worker in "01":
    checkout = cloud / worker / "alexnet_jax"
    assert (cloud / worker / "mounted").exists()
    assert (checkout / "requirements-tpu.txt").exists()
    assert (checkout / "run.log").read_text() == f"worker {worker}: {said}"

"""Bad input ends a real process with one line that names it."""

import os

import pytest

from tests import processes

pytestmark = pytest.mark.faults

# module, arguments, what the line says. {config} is a good config, {tmp} a
# folder with FILES in it.
DEVICE = "--config={config}"
FLAGS = [
  ("main", [], "--config"),
  ("main", [DEVICE, "--workdir="], "--workdir is empty"),
  ("main", [DEVICE, f"--workdir={'x/' * 3000}"], "Set --workdir"),
  ("main", [DEVICE, "--workdir={tmp}/file"], "Set --workdir"),
  ("main", [DEVICE, "--workdir={tmp}/cut"], "config.json' is no JSON"),
  ("main", [DEVICE, "--workdir={tmp}/list"], "has no fields"),
  *(
    (module, [DEVICE, f"--{flag}=hdfs://a/b"], f"--{flag}=hdfs://a/b")
    for module, names in {
      "main": ("workdir", "data_dir", "compilation_cache"),
      "doctor": ("workdir", "data_dir"),
      "inspect": ("picture", "compilation_cache"),
      "compare": ("chart",),
      "convert": ("workdir", "new_workdir"),
      "complexity": ("json",),
      "bench": ("data_dir", "compilation_cache"),
    }.items()
    for flag in names
  ),
  *(
    (module, [f"--{flag}=hdfs://a/b"], f"--{flag}=hdfs://a/b")
    for module, names in {
      "evaluate": ("workdir", "data_dir", "predictions", "json"),
      "prepare": ("data_dir", "from", "write"),
    }.items()
    for flag in names
  ),
  ("main", [DEVICE, "--workdir=gs:/a"], "is an address"),
  ("main", [DEVICE, "--workdir=gs://a/b"], "--workdir=gs://a/b"),
  ("prepare", ["--data_dir=gs://a/b"], "--data_dir=gs://a/b"),
  ("main", [DEVICE, "--data_dir=gs://-/-"], "gs://-/-/digits cannot be read"),
  ("main", [DEVICE, "--data_dir=~nobody_here/a"], "no user 'nobody_here'"),
  ("main", ["--config=gs://a/b.py"], "is an address"),
  ("evaluate", ["--workdir=a,b"], "repeat the flag: --workdir=a --workdir=b"),
  ("main", [DEVICE, "--data_dir=/proc/none"], "--data_dir"),
  ("main", [DEVICE, "--compilation_cache=/proc/none"], "--compilation_cache"),
  ("main", [DEVICE, "--simulate_devices=0"], "--simulate_devices"),
  ("main", [DEVICE, "--simulate_devices=1000000000"], "--simulate_devices"),
  ("main", [DEVICE, "--start_timeout_seconds=nan"], "start_timeout_seconds"),
  ("main", [DEVICE, "--start_timeout_seconds=inf"], "start_timeout_seconds"),
  ("main", [DEVICE, "--distributed=maybe"], "--distributed"),
  ("main", [DEVICE, "--xla_options=on"], "--xla_options"),
  ("main", [DEVICE, "--none=1"], "none"),
  ("main", ["--config={tmp}/syntax.py"], "line 2 of {tmp}/syntax.py"),
  ("main", ["--config={tmp}/name.py"], "line 2 of {tmp}/name.py"),
  ("main", ["--config={tmp}/empty.py"], "no function get_config"),
  ("main", ["--config={tmp}/none.py"], "--config={tmp}/none.py returns None"),
  ("main", ["--config={tmp}/dict.py"], "expected an ml_collections"),
  ("main", ["--config={tmp}/value.py"], "a value of its own"),
  ("main", ["--config={tmp}/import.py"], "No module named 'nowhere'"),
  ("main", ["--config={tmp}/bytes.py"], "bytes.py"),
  ("main", ["--config={tmp}/one.py"], "no field seed"),
  ("main", ["--config={tmp}"], "{tmp}"),
  ("main", ["--config={config}:a:b"], "unknown variant 'a:b'"),
  (
    "main",
    [DEVICE, "--config.layout.mesh={{}}", "--config.layout.mesh.data=1"],
    "no field config.layout.mesh.data",
  ),
  ("main", [DEVICE, "--config.=1"], "'--config.' names no field"),
  ("main", [DEVICE, "--config.network[0]=1"], "config.network[0]"),
  ("main", [DEVICE, f"--config.seed={'-' * 5000}1"], "config.seed"),
  ("main", [DEVICE, f"--config.augment.mean={'-' * 5000}1"], "augment.mean"),
  ("main", [DEVICE, f"--config.augment.mean={'(' * 300}"], "augment.mean"),
  ("evaluate", ["--workdir={tmp}"], "no run in the workdir"),
  ("evaluate", ["--workdir="], "--workdir"),
  ("evaluate", ["--workdir={tmp}/cut"], "config.json' is no JSON"),
  ("evaluate", ["--workdir={tmp}", "--views=3"], "--views"),
  ("evaluate", ["--workdir={tmp}", "--mesh=data"], "--mesh"),
  ("evaluate", ["--workdir={tmp}", "--batch_size=0"], "--batch_size"),
  ("evaluate", ["--workdir={tmp}", "--checkpoint_step=x"], "--checkpoint_step"),
  ("evaluate", ["--workdir={tmp}", "--json={tmp}/none/a.json"], "--json"),
  ("evaluate", ["--workdir={tmp}", "--predictions=a.txt"], "--predictions"),
  ("inspect", [DEVICE, "--format=xml"], "--format"),
  ("inspect", [DEVICE, "--picture=/proc/none/a.svg"], "--picture"),
  ("inspect", [DEVICE, "--topology=v9:1x1"], "--topology"),
  ("compare", [DEVICE, "--layouts=none"], "--layouts"),
  ("compare", [DEVICE, "--devices=0"], "--devices"),
  ("compare", [DEVICE, f"--devices={'1' * 5000}"], "--devices"),
  ("compare", [DEVICE, "--batch_sizes=x"], "--batch_sizes"),
  ("compare", [DEVICE, "--chart=a.txt"], "--chart"),
  ("verify", ["--config={config}", "--layouts=none"], "--layouts"),
  ("verify", ["--config={config}", "--devices=x"], "--devices"),
  ("verify", ["--config={config}", "--devices=1000000"], "--devices"),
  ("verify", ["--config={tmp}"], "{tmp}"),
  ("prepare", ["--dataset=none"], "--dataset is now called --name"),
  ("prepare", ["--data_dir={tmp}", "--from={tmp}/none"], "--from"),
  ("prepare", ["--data_dir={tmp}", "--jobs=0"], "--jobs"),
  ("prepare", ["--data_dir={tmp}", "--shard_images=0"], "--shard_images"),
  ("bench", [DEVICE, "--rounds=0"], "--rounds"),
  ("bench", [DEVICE, "--seconds=-1"], "--seconds"),
  ("bench", [DEVICE, "--seconds=nan"], "seconds"),
  ("bench", [DEVICE, "--what=all"], "--what"),
  ("bench", [DEVICE, "--steps=1"], "--steps"),
  ("bench", [DEVICE, "--implementations=none"], "--implementations"),
  ("doctor", [DEVICE, "--timeout_seconds=0"], "--timeout_seconds"),
  ("doctor", [DEVICE, "--timeout_seconds=nan"], "timeout_seconds"),
  ("complexity", ["--wirings=none"], "--wirings"),
  ("complexity", ["--wirings="], "--wirings"),
  ("complexity", ["--json=/proc/none/a.json"], "--json"),
]
FILES = {
  "file": "",
  "syntax.py": "\ndef get_config(:\n",
  "name.py": "\nnowhere()\n",
  "empty.py": "",
  "none.py": "def get_config():\n  pass\n",
  "dict.py": "def get_config():\n  return {'seed': 1}\n",
  "value.py": "def get_config():\n  raise ValueError('a value of its own')\n",
  "import.py": "import nowhere\n",
  "bytes.py": "\xff\x00",
  "one.py": (
    "import ml_collections\n"
    "def get_config():\n"
    "  return ml_collections.ConfigDict({'batch_size': 1})\n"
  ),
  "cut/config.json": '{"seed": 1, "batch',
  "list/config.json": "[1, 2]",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
  """The ends of the commands of FLAGS, and the folder of their folders."""
  tmp = tmp_path_factory.mktemp("flags")
  for name, text in FILES.items():
    (tmp / name).parent.mkdir(exist_ok=True)
    (tmp / name).write_text(text, encoding="latin-1")
  config = processes.ROOT / "configs/one_device.py"
  cases = []
  for number, (module, arguments, _) in enumerate(FLAGS):
    folder = tmp / f"here{number}"
    folder.mkdir()
    arguments = [a.format(tmp=tmp, config=config) for a in arguments]
    cases.append((module, arguments, folder))
  return tmp, processes.run_forked(cases, tmp)


@pytest.mark.parametrize("number", range(len(FLAGS)))
def test_wrong_flag_or_file_ends_in_one_line_that_names_it(number, ended):
  tmp, found = ended
  expected = FLAGS[number][2].format(tmp=tmp)
  code, _, errors = found[number]
  assert code == 1, (FLAGS[number], errors)
  assert errors.count("\n") == 1 and errors.startswith("error: "), errors
  assert expected in errors
  assert len(errors) < 2500
  assert not os.listdir(tmp / f"here{number}"), "it has left something"


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("JAX_PLATFORMS", "none"),
    ("JAX_PLATFORMS", "cuda"),  # its plug-in is not installed
    ("JAX_NUM_CPU_DEVICES", "1"),
    ("JAX_DISABLE_JIT", "1"),
    # JAX refuses these when it is imported.
    ("JAX_ENABLE_X64", "maybe"),
    ("JAX_DEFAULT_PRNG_IMPL", "none"),
    ("JAX_COORDINATOR_ADDRESS", "none"),
    # XLA would end the process with its own words.
    ("XLA_FLAGS", "--xla_none=1"),
    ("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=maybe"),
  ],
)
def test_wrong_variable_ends_in_one_line_that_names_it(name, value, folder):
  tmp = folder(f"{name} {value}")
  line = processes.train(tmp, code=1, variables=lambda _: {name: value}).errors
  assert name in line
  assert not (tmp / "workdir").exists()


def test_step_that_memory_does_not_hold_ends_in_one_line(folder):
  errors = processes.train(
    folder("memory"),
    {
      **{"network.width": 0.5, "batch_size": 4096, "num_epochs": 200.0},
      **{"network.image_size": 67, "data.stored_size": 77},
    },
    config="one_device",
    # kB; JAX alone takes half of it.
    prefix=lambda _: ("bash", "-c", 'ulimit -d 2000000; exec "$@"', "bash"),
    code=1,
  ).errors
  assert errors.startswith("error: out of memory (")
  assert "Set a lower config.batch_size" in errors


def test_fuzzed_configs_end_well_or_in_one_line_that_names_the_field(tmp_path):
  # The figures of 500 are in docs/reliability.md.
  flags = ("--runs=12", "--seed=2012", "--limit_seconds=150")
  done = processes.run(
    ["python", "-m", "tests.faults.fuzz", *flags], tmp_path, timeout=400
  )
  assert done.code == 0, done
  assert "refused" in done.out and "ran to its end" in done.out

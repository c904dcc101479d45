"""The wheel is the whole program: it runs in a folder without the sources."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import processes

SMALL = (
  *("--config.network.width=0.125", "--config.batch_size=8"),
  *("--config.data.train_split=train[:32]", "--config.num_epochs=1.0"),
)
MY_CONFIG = """
from configs import default

def get_config():
  config = default.get_config()
  config.layout.name = "two_column"
  return config
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with the program as pip installs it, beside its dependencies."""
  tmp = tmp_path_factory.mktemp("wheel")
  # setuptools writes into the folder that it builds.
  sources = tmp / "sources"
  for name in ("alexnet_jax", "configs"):
    shutil.copytree(
      processes.ROOT / name,
      sources / name,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(processes.ROOT / name, sources)
  subprocess.run(
    [
      *(sys.executable, "-m", "pip", "--disable-pip-version-check"),
      *("install", "--quiet", "--no-deps", "--target", tmp / "site", sources),
    ],
    check=True,
    timeout=300,
  )
  return tmp / "site"


@pytest.fixture
def run(installed, tmp_path):
  """Runs a command of the installed program in an empty folder."""

  def run(command, *flags):
    ended = processes.run(
      ["python", "-m", f"alexnet_jax{command}", *flags],
      tmp_path / "cache",
      cwd=tmp_path,
      variables={
        "PYTHONPATH": str(installed),
        # It compiles faster; each command compares with itself only.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      },
      timeout=300,
    )
    assert ended.code == 0, ended.errors
    return ended.out

  return run


@pytest.mark.slow
def test_wheel_trains_evaluates_inspects_and_verifies(run, tmp_path):
  assert "  main " in run("")
  (tmp_path / "mine.py").write_text(MY_CONFIG)
  run(".main", "--config=mine.py", "--workdir=mine", "--data_dir=data", *SMALL)
  trained = run(
    ".main", "--config=configs/two_device.py", "--data_dir=data", *SMALL
  )
  assert "runs/two_device" in trained
  ends = [
    processes.read_reports(tmp_path / workdir)[-1]
    for workdir in ("mine", "runs/two_device")
  ]
  assert [end["step"] for end in ends] == [4, 4]
  assert ends[0]["validation_loss"] == ends[1]["validation_loss"]
  evaluated = run(
    ".evaluate", "--workdir=runs/two_device", "--views=1", "--data_dir=data"
  )
  assert "step 4, layout two_column" in evaluated
  small_image = np.zeros((9, 9, 3), np.uint8)
  Image.fromarray(small_image).save(tmp_path / "black.png")
  assert "black.png" in run(
    ".predict", "--workdir=runs/two_device", "black.png"
  )
  # The template of the page is in the wheel.
  run(
    *(".report", "--workdir=runs/two_device", "--data_dir=data"),
    "--out=report.html",
  )
  assert "Nearest neighbors" in (tmp_path / "report.html").read_text()
  assert "fc8" in run(".inspect", "--config=configs/recipes/paper.py:digits")
  # The machines are in the wheel.
  assert "k20" in run(
    ".search", "--config=configs/two_device.py", "--machine=k20"
  )
  verified = run(".verify", *SMALL[:2], "--layouts=two_column", "--devices=2")
  assert "two_column" in verified and "kept" in verified

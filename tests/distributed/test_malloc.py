"""Memory that a process keeps saves page faults."""

import subprocess
import sys

import pytest

from alexnet_jax.distributed import malloc

# Takes 64 MiB, writes them, gives them back, ten times; then says how many
# pages the kernel had to give in the last five.
PROGRAM = """
import ctypes, resource, sys
from alexnet_jax.distributed import malloc
kept = malloc.keep_freed_memory(sys.argv)
print(kept, malloc.reserve_heap(80 << 20))
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(10):
  before = faults() if turn == 5 else 0 if turn < 5 else before
  piece = library.malloc(64 << 20)
  ctypes.memset(piece, turn, 64 << 20)
  library.free(piece)
print(faults() - before)
"""


FULL_SIZE = "--config=configs/two_device.py:imagenet"


def run(argument, **environment):
  command = [sys.executable, "-c", PROGRAM, argument]
  environment = {"PATH": "", **environment}
  said = subprocess.check_output(command, env=environment, text=True)
  first, second = said.splitlines()
  return first, int(second)


@pytest.mark.skipif(
  not malloc._is_wanted(), reason="no glibc, or an accelerator"
)
def test_memory_that_is_kept_is_not_asked_for_again():
  said, faults = run(FULL_SIZE)
  assert said == "True True"
  # 5 x 64 MiB are 81,920 pages, or 160 large ones.
  assert faults < 10
  said, faults = run("configs/two_device.py")
  assert said == "False False"
  assert faults > 100


def test_settings_of_the_user_stay():
  tunables = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}
  for setting in ({"MALLOC_ARENA_MAX": "4"}, tunables):
    assert run(FULL_SIZE, **setting)[0] == "False False"


def test_full_size_is_told_by_the_name_of_the_config():
  names = {
    "--config=configs/two_device.py": False,
    "configs/one_device.py:digits": False,
    "configs/one_device.py:imagenet": True,
    "--config=configs/recipes/paper.py": True,
    "--config=configs/recipes/paper.py:digits": False,
    "--workdir=runs/recipes": False,
  }
  assert {name: malloc._is_full_size(name) for name in names} == names


def test_accelerators_are_left_alone(monkeypatch):
  monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"])
  assert not malloc._is_wanted()

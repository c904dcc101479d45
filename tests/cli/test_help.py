"""--help shows every flag that a user may set; the package lists commands."""

import re

import pytest

from alexnet_jax import __main__ as listing
from tests import processes

COMMANDS = [name for name, _ in listing.find_commands()]
# Name of a flag in `flags.DEFINE_string("name", ...)` and the like.
DEFINED = re.compile(r"(?:DEFINE_\w+|define_path|define_list)\(\s*\"(\w+)\"")


def find_flags(command):
  """Names of the flags that the source of a command defines."""
  package = processes.ROOT / "alexnet_jax"
  file = package / f"{command}.py"
  file = file if file.exists() else package / command / "__main__.py"
  source = file.read_text()
  shared = (package / "cli/command.py").read_text()
  names = set(DEFINED.findall(source))
  shared_flags = r"command\.(define_(?!path|list)\w+)\((?!.*settable)"
  for function in re.findall(shared_flags, source):
    names.add(DEFINED.search(shared, shared.index(f"def {function}("))[1])
  return names


def check_help(command, ended):
  name = f"alexnet_jax.{command}"
  code, shown, errors = ended
  assert (code, errors) == (0, "")
  names = re.findall(r"^  --(?:\[no\])?(\w+)(?:=|$)", shown, re.MULTILINE)
  assert set(names) == find_flags(command)
  assert len(set(names)) == len(names) > 1
  assert shown.startswith(dict(listing.find_commands())[command] + "\n")
  assert f"usage: python -m {name} [flags]" in shown
  assert max(map(len, shown.splitlines())) <= 80
  # Each has a text, of one line or more.
  assert len(re.findall(r"^  --.*\n      \S", shown, re.MULTILINE)) == (
    len(names) + ("--config.FIELD=VALUE" in shown)
  )


def test_help_shows_every_flag(tmp_path):
  command = ["python", "-m", "alexnet_jax.main", "--help"]
  check_help("main", processes.run(command, tmp_path))


@pytest.mark.slow
def test_help_of_all_commands_shows_every_flag(tmp_path):
  cases = []
  for command in COMMANDS:
    (tmp_path / command).mkdir()
    cases.append((command, ["--help"], tmp_path / command))
  assert len(cases) == 14
  for command, ended in zip(
    COMMANDS, processes.run_forked(cases, tmp_path), strict=True
  ):
    check_help(command, ended)


def test_package_lists_its_commands(tmp_path):
  shown = processes.run(["python", "-m", "alexnet_jax"], tmp_path)
  lines = re.findall(r"^  (\w+) +[A-Z].*\.$", shown.out, re.MULTILINE)
  assert lines == COMMANDS and {"main", "evaluate", "verify"} <= {*lines}

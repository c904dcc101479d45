import errno
import io
import json
import os
import sys

import pytest
import rich.console
import rich.table
from absl import flags

from alexnet_jax.cli import command
from tests import processes


def test_json_is_strict():
  text = command.to_json({"a": [float("nan"), 1.5], "b": float("-inf")})
  found = json.loads(text, parse_constant=pytest.fail)
  assert found == {"a": [None, 1.5], "b": None}


def test_table_is_whole_on_a_narrow_terminal():
  console = rich.console.Console(file=io.StringIO(), width=20)
  table = rich.table.Table("left", "right", box=None)
  table.add_row("1" * 30, "2" * 30)
  command.print_table(console, table)
  shown = console.file.getvalue().splitlines()
  assert shown[1].split() == ["1" * 30, "2" * 30]


@pytest.fixture
def give():
  """Gives a flag some values, as a command line does; returns its value."""
  given = []

  def give(holder, *values):
    given.append(holder.name)
    for value in values:
      flags.FLAGS[holder.name].parse(value)
    return flags.FLAGS[holder.name].value

  yield give
  for name in given:
    delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ([], ["default"]),
    (["a,b"], ["a", "b"]),
    (["a", "b,c"], ["a", "b", "c"]),
    (['"a,b",c'], ["a,b", "c"]),
    ([""], []),
  ],
)
def test_repeated_list_adds_and_quotes_keep_a_comma(given, expected, give):
  assert give(command.define_list("mine", ["default"], ""), *given) == expected


def test_comma_is_part_of_a_path_that_may_be_repeated(give):
  holder = command.define_path("mine", "", repeatable=True)
  assert give(holder, "a,b", "c") == ["a,b", "c"]


# Markup that rich would apply or fail on, an emoji, and a change of color.
ODD_NAME = "sätze [v1] a[/b] :warning: \x1b[31m 東京　大"
SHOWN = "sätze [v1] a[/b] :warning: \\x1b[31m 東京　大"


def test_name_is_printed_as_it_is():
  console = command.make_console(file=io.StringIO())
  command.print_line(console, f"in {ODD_NAME}/x")
  console.print(f"at {ODD_NAME}")
  table = rich.table.Table(f"h {ODD_NAME}", title=f"t {ODD_NAME}")
  table.add_row(f"c {ODD_NAME}")
  command.print_table(console, table)
  printed = console.file.getvalue()
  for text in (f"in {SHOWN}/x", *(f"{what} {SHOWN}" for what in "htc")):
    assert text in printed
  assert f"at {SHOWN}" in printed


def test_error_shows_a_name_as_it_is_in_one_line():
  error = ValueError(f"a  b {ODD_NAME} \udcff\n  c")
  with pytest.raises(SystemExit) as ended:
    command.exit_with_error(error)
  assert ended.value.code == f"error: a  b {SHOWN} \\udcff c"


GONE = BrokenPipeError(errno.EPIPE, "Broken pipe")
NO_FILE = FileNotFoundError(errno.ENOENT, "No such file", "b")
UNREAD = OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
  ("error", "is_gone", "expected"),
  [
    (GONE, True, "standard output cannot be written (Broken pipe)."),
    (ValueError("a is 3"), True, "a is 3"),
    (OSError("a is locked"), True, "a is locked"),
    (NO_FILE, True, "[Errno 2] No such file: 'b'"),
    # Of a file, perhaps: the error does not say which.
    (UNREAD, False, "standard output or a file cannot be read or written (Inp"),
  ],
)
def test_error_is_not_taken_for_that_of_an_output_that_is_gone(
  error, is_gone, expected, monkeypatch
):
  reader, writer = os.pipe()
  if is_gone:
    os.close(reader)
  with open(writer, "w") as output:
    output.write("lost")
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit) as ended:
      command.exit_with_error(error)
  assert ended.value.code.startswith(f"error: {expected}")
  if not is_gone:
    os.close(reader)


def test_every_console_prints_names_as_they_are():
  files = (processes.ROOT / "alexnet_jax").rglob("*.py")
  assert not [f for f in files if "rich.console.Console(" in f.read_text()]


@pytest.mark.parametrize(
  ("value", "expected"), [("2x4", (2, 4)), ("1x1", (1, 1)), ("64x8", (64, 8))]
)
def test_hosts_are_parsed(value, expected):
  assert command.parse_hosts(value) == expected


@pytest.mark.parametrize("value", ["8", "2*4", "0x4", "2x", "2x4x2", "-2x4"])
def test_other_hosts_are_refused(value):
  with pytest.raises(ValueError, match=r"--hosts is .* Set --hosts=2x4\."):
    command.parse_hosts(value)


def test_machine_is_loaded_with_its_hosts():
  assert command.load_machine(None, None) is None
  assert command.load_machine("h100_2x4", None).devices == 8
  machine = command.load_machine("h100_2x4", "8x2")
  assert machine.devices == 16
  assert [link.joins_devices for link in machine.links] == [2, None]


@pytest.mark.parametrize(
  ("name", "hosts", "message"),
  [
    (None, "2x4", "without a machine. Set --machine, or leave --hosts out"),
    ("abacus", None, "unknown machine 'abacus', expected .*dgx_h100"),
    ("nosuch.json", None, "there is no machine file nosuch.json"),
    ("k20", "2x4", "one level of links, .* Set --machine, or leave --hosts"),
    ("h100_2x4", "2x8", "8 devices in a host are more than the 4 that"),
  ],
)
def test_machine_that_cannot_be_used_is_refused(name, hosts, message):
  with pytest.raises(ValueError, match=message) as error:
    command.load_machine(name, hosts)
  assert "\n" not in str(error.value)


def test_file_that_is_no_machine_is_refused(tmp_path):
  path = tmp_path / "wrong.json"
  path.write_text("{")
  with pytest.raises(ValueError, match="wrong.json is no JSON"):
    command.load_machine(str(path), None)
  path.write_text('{"name": 3}')
  with pytest.raises(ValueError, match="wrong.json"):
    command.load_machine(str(path), None)

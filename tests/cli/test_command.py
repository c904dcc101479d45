import io

import pytest
import rich.console
import rich.table
from absl import flags

from alexnet_jax.cli import command


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

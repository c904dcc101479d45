import io

import rich.console
import rich.table

from alexnet_jax.cli import command


def test_table_is_whole_on_a_narrow_terminal():
  console = rich.console.Console(file=io.StringIO(), width=20)
  table = rich.table.Table("left", "right", box=None)
  table.add_row("1" * 30, "2" * 30)
  command.print_table(console, table)
  shown = console.file.getvalue().splitlines()
  assert shown[1].split() == ["1" * 30, "2" * 30]

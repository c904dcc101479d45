"""Tables of the benchmarks, for a terminal and for a page in Markdown."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import rich.table
from absl import flags

from alexnet_jax.cli import command
from alexnet_jax.program import summary


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  Attributes:
    title: above it; empty: none.
    headers: one that begins with "> " is of numbers.
    rows: a cell for each header.
  """

  title: str
  headers: Sequence[str]
  rows: Sequence[Sequence[str]]

  def to_rich(self) -> rich.table.Table:
    table = summary.make_table(self.title, *self.headers)
    for row in self.rows:
      table.add_row(*row)
    return table

  def to_markdown(self) -> str:
    """The table without its title."""
    names = [header.removeprefix("> ") for header in self.headers]
    marks = ["---:" if it.startswith("> ") else "---" for it in self.headers]
    lines = [f"| {' | '.join(row)} |" for row in (names, marks, *self.rows)]
    return "\n".join(line.replace("\n", "<br>") for line in lines)


def define_markdown() -> None:
  command.define_path("markdown", "A file to write the page to as well.")


def check_markdown() -> None:
  """Checks --markdown before anything is measured.

  Raises:
    ValueError: the file cannot be written.
  """
  if path := flags.FLAGS.markdown:
    command.check_path(path, flag="markdown", endings=("",))


def write(title: str, origin: str, docstring: str, *parts: str) -> None:
  """Writes the page of --markdown, if it is set.

  Args:
    title: of the page.
    origin: the paragraph that says how the page is made.
    docstring: of the benchmark; all but its first paragraph is the text.
    *parts: that follow the text.
  """
  if path := flags.FLAGS.markdown:
    _, _, text = docstring.partition("\n\n")
    page = "\n\n".join((f"# {title}", origin, text.strip(), *parts))
    pathlib.Path(path).write_text(f"{page}\n")

"""What `peers` has measured, for people and as data."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from benchmarks import turns

HEADERS = (
  *("variant", "images/s", "ms", "lowest", "highest"),
  *("ours is faster", "lowest", "highest"),
)
_ABOUT_RATIOS = (
  "ours is faster: how many times as fast as the variant, in the same round; "
  "median, lowest and highest of the rounds"
)
# Facts of a start, which differ between workers that are alike.
_OF_START = ("first_loss", "start_seconds")


@dataclasses.dataclass(frozen=True)
class Table:
  """All variants with one batch size.

  Attributes:
    batch_size: images in a step.
    found: by variant.
  """

  batch_size: int
  found: Mapping[str, turns.Found]

  def title(self) -> str:
    return f"Whole training steps of {self.batch_size:,} images"

  def rows(self) -> list[tuple[str, ...]]:
    """As `HEADERS`; a variant without a round says so."""
    return [self._to_row(name, found) for name, found in self.found.items()]

  def _to_row(self, name: str, found: turns.Found) -> tuple[str, ...]:
    if not found.seconds:
      why = found.missing.partition(":")[0] if found.missing else "failed"
      return (name, why, *[""] * (len(HEADERS) - 2))
    times = (found.median(), min(found.seconds), max(found.seconds))
    ratios = (found.ratio(), min(found.ratios), max(found.ratios))
    return (
      name,
      f"{self.batch_size / found.median():,.1f}",
      *(f"{1e3 * time:,.1f}" for time in times),
      *(f"{ratio:.2f}" for ratio in ratios),
    )

  def lines(self) -> list[str]:
    """What the rows do not say: facts of the workers, and what went wrong."""
    said = collections.defaultdict(list)
    for name, found in self.found.items():
      facts = ", ".join(
        f"{fact} {value}"
        for fact, value in found.facts.items()
        if fact not in _OF_START
      )
      for line in (facts, found.missing, found.error):
        if line:
          said[line].append(name)
    idle = max(found.idle_cpu_seconds for found in self.found.values())
    return [
      _ABOUT_RATIOS,
      *(f"{', '.join(names)}: {line}" for line, names in said.items()),
      "waiting for its turn, no worker has computed for more than "
      f"{idle:.2f} s",
    ]

  def to_rich(self) -> rich.table.Table:
    table = rich.table.Table(
      title=f"\n{self.title()}", title_justify="left", box=None
    )
    for number, header in enumerate(HEADERS):
      table.add_column(header, justify="right" if number else "left")
    for row in self.rows():
      table.add_row(*row)
    return table

  def to_markdown(self) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (HEADERS, *self.rows())]
    lines.insert(1, f"| --- |{' ---: |' * (len(HEADERS) - 1)}")
    listed = [f"- {line}" for line in self.lines()]
    return "\n\n".join(
      (f"## {self.title()}", "\n".join(lines), "\n".join(listed))
    )

  def to_data(self) -> dict[str, Any]:
    """What the table shows, and the seconds and ratios of every round."""
    variants = {}
    for name, found in self.found.items():
      variants[name] = dataclasses.asdict(found)
      if found.seconds:
        variants[name] |= {
          "images_per_second": self.batch_size / found.median(),
          "ratio": found.ratio(),
        }
    return {"batch_size": self.batch_size, "variants": variants}


def to_page(explanation: str, tables: Sequence[Table], about: str) -> str:
  """A page in Markdown.

  Args:
    explanation: the docstring of the command.
    tables: on the page.
    about: one line on the run.
  """
  _, _, explanation = explanation.partition("\n\n")
  return (
    "\n\n".join(
      (
        "# Our training step beside others",
        f"`python -m benchmarks.peers` writes this page: {about}.",
        explanation.strip(),
        *(table.to_markdown() for table in tables),
        "",
      )
    ).rstrip("\n")
    + "\n"
  )

"""What `benchmarks.peers` has measured, as tables and as data."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks import page
from benchmarks.peers import workers

HEADERS = (
  *("variant", "images/s", "ms", "lowest", "highest"),
  *("ours is faster", "lowest", "highest"),
)
_ABOUT_RATIOS = (
  "ours is faster: its speed as a multiple of the variant's in the same round; "
  "median, lowest and highest of the rounds"
)
# Facts that differ between equal workers.
_START_FACTS = ("first_loss", "start_seconds")


@dataclasses.dataclass(frozen=True)
class Comparison:
  """All variants with one batch size.

  Attributes:
    batch_size: images in a step.
    measured: by variant.
  """

  batch_size: int
  measured: Mapping[str, workers.Measured]

  def title(self) -> str:
    return f"Complete training steps of {self.batch_size:,} images"

  def rows(self) -> list[tuple[str, ...]]:
    """Cells for `HEADERS`; a variant without a round says why."""
    return [
      self._to_row(name, variant) for name, variant in self.measured.items()
    ]

  def _to_row(self, name: str, variant: workers.Measured) -> tuple[str, ...]:
    if not variant.seconds:
      why = variant.missing.partition(":")[0] if variant.missing else "failed"
      return (name, why, *[""] * (len(HEADERS) - 2))
    times = (variant.median(), min(variant.seconds), max(variant.seconds))
    ratios = (variant.ratio(), min(variant.ratios), max(variant.ratios))
    return (
      name,
      f"{self.batch_size / variant.median():,.1f}",
      *(f"{1e3 * time:,.1f}" for time in times),
      *(f"{ratio:.2f}" for ratio in ratios),
    )

  def lines(self) -> list[str]:
    """Facts of the workers, and what went wrong."""
    names_by_line = collections.defaultdict(list)
    for name, variant in self.measured.items():
      facts = ", ".join(
        f"{fact} {value}"
        for fact, value in variant.facts.items()
        if fact not in _START_FACTS
      )
      for line in (facts, variant.missing, variant.error):
        if line:
          names_by_line[line].append(name)
    idle = max(variant.idle_cpu_seconds for variant in self.measured.values())
    return [
      _ABOUT_RATIOS,
      *(f"{', '.join(names)}: {line}" for line, names in names_by_line.items()),
      "while it waited for its turn, no worker used more than "
      f"{idle:.2f} s of CPU time",
    ]

  def to_page(self) -> page.Table:
    headers = [*HEADERS[:1], *(f"> {header}" for header in HEADERS[1:])]
    return page.Table(self.title(), headers, self.rows())

  def to_markdown(self) -> str:
    listed = "\n".join(f"- {line}" for line in self.lines())
    table = self.to_page().to_markdown()
    return f"## {self.title()}\n\n{table}\n\n{listed}"

  def to_data(self) -> dict[str, Any]:
    """The numbers of the table, and seconds and ratios of every round."""
    variants = {}
    for name, variant in self.measured.items():
      variants[name] = dataclasses.asdict(variant)
      if variant.seconds:
        variants[name] |= {
          "images_per_second": self.batch_size / variant.median(),
          "ratio": variant.ratio(),
        }
    return {"batch_size": self.batch_size, "variants": variants}

"""What a section of the page consists of, before it is laid out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib import figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of the page.

  Attributes:
    header: of the columns.
    rows: texts of cells, as many as the header has; not yet escaped.
    caption: what it shows, in a sentence.
    numeric: indices of the columns that are aligned as numbers.
    is_folded: whether only its caption is shown, and the rest on request.
  """

  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str
  numeric: Sequence[int] = ()
  is_folded: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  """A figure of the page, which `--figures` also writes as a file.

  Attributes:
    name: of the file without its ending: lower-case words, "_" between them.
    figure: drawn, with a transparent background.
    kind: in the page: svg for lines and text, png for pictures.
    caption: what it shows, in a sentence or two.
    alternative: says in words what is to be seen, for who cannot see it; with
      the numbers that matter.
    table: the numbers behind it, shown on request; None: there are none.
  """

  name: str
  figure: figure.Figure
  kind: str
  caption: str
  alternative: str
  table: Table | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A command line of the page, to be copied.

  Attributes:
    line: as a shell reads it; not yet escaped.
    caption: what it does, in a sentence.
  """

  line: str
  caption: str


Part = Drawing | Table | Command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """A section of the page.

  Attributes:
    name: its anchor: lower-case words, "-" between them.
    title: as shown.
    text: paragraphs, plain text.
    parts: in their order.
  """

  name: str
  title: str
  text: Sequence[str] = ()
  parts: Sequence[Part] = ()

"""What the charts of all commands share: settings, labels, and saving."""

from __future__ import annotations

import math
import textwrap
import warnings
from typing import BinaryIO

from matplotlib import figure, font_manager, textpath

# For `matplotlib.rc_context`, around drawing and saving.
SETTINGS = {
  "svg.hashsalt": "alexnet_jax",
  "font.family": "DejaVu Sans",
  "font.size": 9,
}
_DOTS_PER_INCH = 200
_NO_GLYPH = r"Glyph \d+ .* missing from font"
# Characters of a name that is cut.
_NAME = 22
# Without a date a chart of the same values is the same file.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def to_label(text: str) -> str:
  """Escapes what is special in a legend: a formula, and a hidden entry."""
  escaped = text.replace("$", r"\$")
  return f" {escaped}" if escaped.startswith("_") else escaped


def shorten(name: str, width: int = _NAME) -> str:
  """Cuts a long name for a chart, between words where it can."""
  short = textwrap.shorten(name, width, placeholder=" …")
  if short.strip() in ("", "…"):  # its first word is too long
    short = name if len(name) <= width else f"{name[: width - 1]}…"
  return to_label(short)


def fit(
  name: str, points: float, *, size: float, weight: str = "normal"
) -> str:
  """Cuts a name for a chart so that it is not wider than a space.

  Args:
    points: width of the space, in 1/72 inch.
    size: of the font, in points.
    weight: of the font.
  """
  font = font_manager.FontProperties(
    family=SETTINGS["font.family"], size=size, weight=weight
  )
  full = _find_width(to_label(name), font)
  if full <= points:
    return to_label(name)
  # Its letters may be up to a half narrower than those of the rest.
  most = max(1, min(len(name), math.ceil(1.5 * len(name) * points / full)))
  for width in range(most, 1, -1):
    short = shorten(name, width)
    if _find_width(short, font) <= points:
      return short
  return shorten(name, 1)


def _find_width(text: str, font: font_manager.FontProperties) -> float:
  """Returns the width of a text in points, as it is drawn."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", _NO_GLYPH)
    width, _, _ = textpath.text_to_path.get_text_width_height_descent(
      text, font, ismath=False
    )
  return width


def format_tick(number: float, _: int) -> str:
  """Formats without an exponent: `0.5`, `20`, `1,000`; for `FuncFormatter`."""
  return f"{number:,.9f}".rstrip("0").rstrip(".")


def save(
  drawn: figure.Figure,
  path: str | BinaryIO,
  *,
  kind: str | None = None,
  dots_per_inch: int = _DOTS_PER_INCH,
  transparent: bool = False,
) -> None:
  """Saves a figure; the same figure gives the same file.

  Args:
    path: of the file, which a command has checked by `command.check_path`; or
      an open one.
    kind: svg, png or pdf; None: as the path ends.
    dots_per_inch: of png, and of pictures inside svg and pdf.
    transparent: whether there is no background.

  Raises:
    OSError: the file cannot be written.
  """
  kind = kind or path.rpartition(".")[2]
  with warnings.catch_warnings():
    # A name may have letters that the font lacks: boxes in a picture. A browser
    # has them in other fonts.
    warnings.filterwarnings("ignore", _NO_GLYPH)
    drawn.savefig(
      path,
      format=kind,
      dpi=dots_per_inch,
      metadata=_UNDATED.get(kind, {}),
      transparent=transparent,
    )

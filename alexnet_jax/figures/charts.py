"""What the charts of all commands share: settings, labels, and saving."""

from __future__ import annotations

from matplotlib import figure

# For `matplotlib.rc_context`, around drawing and saving.
SETTINGS = {
  "svg.hashsalt": "alexnet_jax",
  "font.family": "DejaVu Sans",
  "font.size": 9,
}
_DOTS_PER_INCH = 200
# Without a date a chart of the same values is the same file.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def to_label(text: str) -> str:
  """Escapes what is special in a legend: a formula, and a hidden entry."""
  escaped = text.replace("$", r"\$")
  return f" {escaped}" if escaped.startswith("_") else escaped


def format_tick(number: float, _: int) -> str:
  """Formats without an exponent: `0.5`, `20`, `1,000`; for `FuncFormatter`."""
  return f"{number:,.9f}".rstrip("0").rstrip(".")


def save(drawn: figure.Figure, path: str, *, kind: str | None = None) -> None:
  """Saves a figure; the same figure gives the same file.

  Args:
    path: of the file; a command has checked it by `command.check_path`.
    kind: svg, png or pdf; None: as the path ends.

  Raises:
    OSError: the file cannot be written.
  """
  kind = kind or path.rpartition(".")[2]
  drawn.savefig(
    path, format=kind, dpi=_DOTS_PER_INCH, metadata=_UNDATED.get(kind, {})
  )

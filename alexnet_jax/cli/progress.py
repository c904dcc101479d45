"""How far a command is that goes through many images."""

from __future__ import annotations

import time

import rich.console
import rich.progress

# Between two lines of progress if the output is not a terminal.
_LINE_SECONDS = 30.0


class Images:
  """A bar with rate and time left on a terminal; else occasional lines.

  A context, which shows nothing before the first `advance`.
  """

  def __init__(self, console: rich.console.Console):
    self._console = console
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn("images"),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("{task.fields[text]}", markup=False),
      console=console,
      disable=not console.is_terminal,
      transient=True,
    )
    self._task = None

  def __enter__(self) -> Images:
    self._since = self._last = time.monotonic()
    self._bar.start()
    return self

  def __exit__(self, *unused) -> None:
    self._bar.stop()

  def advance(self, done: int, total: int) -> None:
    """Shows that `done` of `total` images are done."""
    now = time.monotonic()
    if self._task is None:
      self._task = self._bar.add_task("images", total=total, text="")
    rate = done / max(now - self._since, 1e-9)
    left = to_time((total - done) / rate) if done else "?"
    text = f"{rate:,.0f} images/s, {left} left"
    self._bar.update(self._task, completed=done, text=text)
    if not self._console.is_terminal and now - self._last > _LINE_SECONDS:
      self._last = now
      self._console.print(
        f"{done:,} of {total:,} images, {text}", highlight=False
      )


def to_time(seconds: float) -> str:
  """Formats a time that is left, of seconds to days: `40 s`, `3 h 05 min`."""
  minutes = round(seconds / 60)
  if minutes < 1:
    return f"{max(1, round(seconds))} s"
  if minutes < 60:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60:02} min"

"""How far a command is, on a terminal and elsewhere."""

import io

import pytest

from alexnet_jax.cli import command, progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until it is set."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def test_lines_are_occasional_where_there_is_no_terminal(clock):
  out = io.StringIO()
  with progress.Images(command.make_console(file=out)) as shown:
    for done in range(0, 2001, 100):
      shown.advance(done, 2000)
      clock[0] += 5.0  # 20 images a second; a line after more than 30 s
  lines = out.getvalue().splitlines()
  assert lines[:2] == [
    "700 of 2,000 images, 20 images/s, 1 min left",
    "1,400 of 2,000 images, 20 images/s, 30 s left",
  ]
  assert len(lines) == 2


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [(0.1, "1 s"), (29, "29 s"), (90.1, "2 min"), (3900, "1 h 05 min")],
)
def test_time_left_has_a_fitting_unit(seconds, expected):
  assert progress.to_time(seconds) == expected

"""What the benchmark of kills would say of a run that loses something."""

import pytest

from tests.faults import attempt


@pytest.mark.parametrize(
  ("said", "newest", "fault"),
  [
    ("plan\ngoes on after step 40 of 90\nstep 41/90: loss", 40, None),
    ("finished already, at step 90; set", 90, None),
    ("plan, killed be", 40, None),  # not known yet
    ("step 1/90: loss 2.3", None, None),
    ("goes on after step 30 of 90", 40, "step 40 of ..., but it said: goes on"),
    ("audit: ..\nstep 1/90: loss 2.3", 40, "but it said: step 1/90"),
    ("goes on after step 30 of 90", None, "where there was none"),
  ],
)
def test_run_that_goes_on_from_elsewhere_is_found(said, newest, fault):
  found = attempt.find_fault(said, newest)
  assert found is None if fault is None else fault in found


def test_line_that_a_kill_cut_off_is_no_line(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1}\n{"step": 2, "lo\n{"step": 2}\n{"ste'
  )
  assert [line["step"] for line in attempt.read_metrics(tmp_path)] == [1, 2]

import functools
import time

import pytest

from alexnet_jax.bench import gaps
from alexnet_jax.bench import run as run_speed
from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.data import pipeline
from alexnet_jax.training import report

# Two steps to warm up, and three that count. The second of these is started
# before the one before it ends.
RECORD = gaps.Record(
  started=[0.0, 1.0, 5.0, 6.0, 9.5],
  ended=[2.0, 3.0, 7.0, 8.0, 11.0],
  switches=[
    *((0.0, gaps.ELSE), (1.0, gaps.INPUT), (4.5, gaps.ELSE)),
    *((6.5, gaps.REPORT), (8.25, gaps.CHECKPOINT), (9.0, gaps.INPUT)),
    *((9.25, gaps.ELSE), (10.0, gaps.INPUT)),
  ],
  reports=[1, 4],
  checkpoints=[4, 5],
)


def test_gaps_are_split_by_what_the_host_did():
  found = gaps.find_gaps(RECORD, warm=2)
  # From 3 to 5, and from 8 to 9.5.
  assert found.spent == {
    gaps.INPUT: 1.5 + 0.25,
    gaps.REPORT: 0.25,
    gaps.CHECKPOINT: 0.75,
    gaps.ELSE: 0.5 + 0.25,
  }
  assert found.steps == 3
  assert found.wall == 8.0  # from 3 to 11
  assert found.share == 3.5 / 8
  assert found.step_seconds == [2.0, 1.0, 1.5]
  # In the warm steps, and behind the last: neither is in a gap that counts.
  assert found.reports == found.checkpoints == 1


def test_time_outside_steps_follows_the_cadence():
  found = gaps.find_gaps(RECORD, warm=2)
  # A step takes 4.5 / 3 s and waits for input and the like 2.5 / 3 s.
  share = found.share_at(report_every=5, checkpoint_every=15)
  outside = 2.5 / 3 + 0.25 / 5 + 0.75 / 15
  assert share == pytest.approx(outside / (4.5 / 3 + outside))
  # At the pace of the record, one of each in three steps, as in the record.
  assert found.share_at(report_every=3, checkpoint_every=3) == pytest.approx(
    found.share
  )


def test_step_that_waits_for_the_one_before_leaves_no_gap():
  record = gaps.Record(
    started=[0.0, 0.5, 1.5], ended=[1.0, 2.0, 3.0], switches=[(0.0, gaps.ELSE)]
  )
  assert gaps.find_gaps(record, warm=1).share == 0.0


def test_config_is_fitted_so_that_all_comes_within_the_steps(tiny_config):
  tiny_config.keep_every_steps = 100
  fitted = run_speed.fit(tiny_config, 60)
  assert (fitted.log_every_steps, fitted.checkpoint_every_steps) == (2, 31)
  assert fitted.eval_every_steps == 60
  assert tiny_config.checkpoint_every_steps == 100


class Totals:
  """Of a step that is over so many seconds after it is waited for."""

  def __init__(self, seconds: float):
    self._seconds = seconds

  def block_until_ready(self) -> None:
    time.sleep(self._seconds)


def test_watch_notes_the_end_of_each_step_and_what_is_done_meanwhile():
  noted = run_speed.StepTimeline()
  begin = time.perf_counter()
  with noted.running():
    for seconds in (0.0, 0.2):
      noted.start()
      noted.follow(Totals(seconds))
    with noted.doing(gaps.CHECKPOINT), noted.doing(gaps.REPORT):
      pass
  record = noted.record()
  assert len(record.started) == len(record.ended) == 2
  assert begin <= record.started[0] <= record.ended[0] <= record.ended[1]
  assert record.ended[1] - begin >= 0.2
  assert [activity for _, activity in record.switches] == [
    *(gaps.ELSE, gaps.CHECKPOINT, gaps.REPORT, gaps.CHECKPOINT, gaps.ELSE)
  ]
  times = [when for when, _ in record.switches]
  assert times == sorted(times)


@pytest.mark.slow
def test_slow_input_reports_and_checkpoints_are_found_in_a_run(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.log_every_steps = 3

  def slow_down(function, seconds):
    @functools.wraps(function)
    def slow(*arguments, **options):
      time.sleep(seconds)
      return function(*arguments, **options)

    return slow

  def slow_batches(**options):
    for batch in batches(**options):
      time.sleep(0.1)
      yield batch

  batches = pipeline.train_batches
  monkeypatch.setattr(
    pipeline,
    "train_batches",
    lambda records, **options: slow_batches(records=records, **options),
  )
  for owner, name, seconds in (
    (report.Reporter, "training", 0.3),
    (checkpoint.Checkpoints, "save", 0.5),
  ):
    monkeypatch.setattr(owner, name, slow_down(getattr(owner, name), seconds))
  found = run_speed.measure(
    tiny_config,
    steps=12,
    data_dir=str(tmp_path),
    simulate_devices=None,
  ).gaps
  assert found.steps == 10
  assert found.reports == 3 and found.checkpoints == 1
  # Steps take a hundredth of a second, during which some of this passes.
  assert 0.5 < found.spent[gaps.INPUT] < 2.0
  assert 0.6 < found.spent[gaps.REPORT] < 1.8
  assert 0.4 < found.spent[gaps.CHECKPOINT] < 2.0
  assert found.spent[gaps.ELSE] < 0.2
  assert sum(found.step_seconds) + sum(found.spent.values()) == pytest.approx(
    found.wall
  )

import functools
import time
import types

import pytest

from alexnet_jax.bench import gaps
from alexnet_jax.bench import run as bench_run
from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.data import pipeline
from alexnet_jax.training import report
from tests import short_network

# Two steps to warm up, and three that count. The second of these is started
# before the one before it ends.
TIMELINE = gaps.Timeline(
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
  found = gaps.find_gaps(TIMELINE, warm=2)
  # From 3 to 5, and from 8 to 9.5.
  assert found.gap_seconds == {
    gaps.INPUT: 1.5 + 0.25,
    gaps.REPORT: 0.25,
    gaps.CHECKPOINT: 0.75,
    gaps.ELSE: 0.5 + 0.25,
  }
  assert found.steps == 3 and found.wall_seconds == 8.0  # from 3 to 11
  assert found.gap_share == 3.5 / 8
  assert found.step_seconds == [2.0, 1.0, 1.5]
  # Those in the warm-up and after the last step are in no gap that counts.
  assert found.reports == found.checkpoints == 1


def test_time_outside_steps_follows_the_cadence():
  found = gaps.find_gaps(TIMELINE, warm=2)
  # A step takes 4.5 / 3 s and waits for input and the like 2.5 / 3 s.
  share = found.gap_share_at(log_every_steps=5, checkpoint_every_steps=15)
  outside = 2.5 / 3 + 0.25 / 5 + 0.75 / 15
  assert share == pytest.approx(outside / (4.5 / 3 + outside))
  # The timeline has one of each in three steps.
  share = found.gap_share_at(log_every_steps=3, checkpoint_every_steps=3)
  assert share == pytest.approx(found.gap_share)


def test_step_that_waits_for_the_one_before_leaves_no_gap():
  timeline = gaps.Timeline(
    started=[0.0, 0.5, 1.5], ended=[1.0, 2.0, 3.0], switches=[(0.0, gaps.ELSE)]
  )
  assert gaps.find_gaps(timeline, warm=1).gap_share == 0.0


def test_cadence_is_shortened_so_that_all_happens_within_the_steps(tiny_config):
  tiny_config.keep_every_steps = 100
  shortened = bench_run.shorten_cadence(tiny_config, 60)
  assert (shortened.log_every_steps, shortened.eval_every_steps) == (2, 60)
  assert shortened.checkpoint_every_steps == 31
  assert tiny_config.checkpoint_every_steps == 100


def make_totals(seconds: float):
  """Totals that are ready some seconds after a wait for them has begun."""
  wait = functools.partial(time.sleep, seconds)
  return types.SimpleNamespace(block_until_ready=wait)


def test_recorder_notes_the_end_of_each_step_and_what_is_done_meanwhile():
  recorder = bench_run.Recorder()
  begin = time.perf_counter()
  with recorder.recording():
    for seconds in (0.0, 0.2):
      recorder.start_step(lambda seconds=seconds: (None, make_totals(seconds)))
    with recorder.doing(gaps.CHECKPOINT), recorder.doing(gaps.REPORT):
      pass
  (first, _), ended = recorder.started, recorder.ended
  assert len(ended) == 2 and begin <= first <= ended[0] <= ended[1]
  assert ended[1] - begin >= 0.2
  assert [activity for _, activity in recorder.switches] == [
    *(gaps.ELSE, gaps.CHECKPOINT, gaps.REPORT, gaps.CHECKPOINT, gaps.ELSE)
  ]
  times = [when for when, _ in recorder.switches]
  assert times == sorted(times)


@pytest.mark.slow
def test_slow_input_reports_and_checkpoints_are_found_in_a_run(
  tiny_config, tmp_path, monkeypatch
):
  short_network.shorten(tiny_config)
  tiny_config.network.width = 1 / 8
  tiny_config.log_every_steps = 3

  def slow_down(function, seconds):
    @functools.wraps(function)
    def slow(*arguments, **options):
      time.sleep(seconds)
      return function(*arguments, **options)

    return slow

  batches = pipeline.train_batches

  def slow_batches(*arguments, **options):
    for batch in batches(*arguments, **options):
      time.sleep(0.1)
      yield batch

  monkeypatch.setattr(pipeline, "train_batches", slow_batches)
  for owner, name, seconds in (
    (report.Reporter, "training", 0.3),
    (checkpoint.Checkpoints, "save", 0.5),
  ):
    monkeypatch.setattr(owner, name, slow_down(getattr(owner, name), seconds))
  found = bench_run.measure(
    tiny_config, steps=12, data_dir=str(tmp_path), simulate_devices=None
  ).gaps
  assert (found.steps, found.reports, found.checkpoints) == (10, 3, 1)
  # Steps take a hundredth of a second, during which some of this passes.
  assert 0.5 < found.gap_seconds[gaps.INPUT] < 2.0
  assert 0.6 < found.gap_seconds[gaps.REPORT] < 1.8
  assert 0.4 < found.gap_seconds[gaps.CHECKPOINT] < 2.0
  assert found.gap_seconds[gaps.ELSE] < 0.2
  total = sum(found.step_seconds) + sum(found.gap_seconds.values())
  assert total == pytest.approx(found.wall_seconds)

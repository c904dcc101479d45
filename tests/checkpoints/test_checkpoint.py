"""Checkpoints of a few small arrays: kept, described, refused."""

import asyncio
import errno
import json
import os
import pathlib
import sys
import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import checkpoint, metadata, reader, writer
from alexnet_jax.program import step as step_lib
from alexnet_jax.training import report


def make_state(value=1.0, number=0):
  return step_lib.TrainState(
    step=jnp.int32(number),
    parameters={"conv1": {"kernel": jnp.full((2, 3), value, jnp.float32)}},
    optimizer=(jnp.float32(np.inf),),  # the best error before there is any
    statistics={},
  )


def save(workdir, steps, errors=(), **options):
  """Saves steps, some with an error; returns those that are left."""
  checkpoints = checkpoint.Checkpoints(str(workdir), **options)
  errors = dict(errors)
  for step in steps:
    facts = {"validation_error": errors[step]} if step in errors else {}
    checkpoints.save(step, make_state(step, step), facts)
  saved = checkpoints.close()
  return saved, reader.find_steps(str(workdir))


def fail_with(error):
  def fail(*_, **__):
    raise error

  return fail


def test_newest_best_and_every_so_often_are_kept_over_a_restart(tmp_path):
  errors = {2: 0.4, 4: 0.1, 5: 0.2, 7: 0.1, 8: 0.3}
  options = {"keep": 2, "best": 2, "every": 3}
  # Of the two of 0.1, both are among the two best.
  saved, left = save(tmp_path, range(1, 7), errors.items(), **options)
  assert [one.step for one in saved] == [1, 2, 3, 4, 5, 6]
  assert left == [3, 4, 5, 6]
  _, left = save(tmp_path, range(7, 10), errors.items(), **options)
  assert left == [3, 4, 6, 7, 8, 9]
  assert checkpoint.Checkpoints(str(tmp_path), **options).facts(4) == {
    "validation_error": 0.1
  }


def test_newest_is_never_kept_without_the_one_before_it(tmp_path):
  _, left = save(tmp_path, range(1, 4), keep=1)
  assert left == [2, 3]
  (tmp_path / "checkpoints/3/_CHECKPOINT_METADATA").unlink()
  again = checkpoint.Checkpoints(str(tmp_path), keep=1)
  assert again.resume(make_state(), print)[0] == 2


def test_kept_are_those_of_a_rule_tried_on_each_step():
  rng = np.random.default_rng(0)
  for _ in range(50):
    steps = rng.choice(30, 9, replace=False).tolist()
    errors = {step: rng.integers(3) / 2 for step in steps if rng.random() < 0.7}
    newest, best, every = (
      rng.integers(1, 4),
      rng.integers(3),
      rng.integers(1, 9),
    )
    found = writer.find_kept(
      steps, errors, newest=newest, best=best, every=int(every)
    )
    for step in steps:
      later = sum(other > step for other in steps)
      better = sum(
        (error, -other) < (errors.get(step, 9), -step)
        for other, error in errors.items()
      )
      stays = (
        later < newest
        or (step in errors and better < best)
        or step % every == 0
      )
      assert (step in found) == stays


def test_checkpoint_says_what_it_is_and_is_held_against_that(
  tmp_path, monkeypatch
):
  (tmp_path / "config.json").write_text('{"seed": 3, "network.width": 0.5}')
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  # What is edited or checked out while it runs is not what runs.
  (tmp_path / "config.json").write_text("{")
  with monkeypatch.context() as patched:
    patched.setattr(metadata, "find", fail_with(ValueError("edited")))
    checkpoints.save(4, make_state(4, 4), {"validation_error": 0.5})
    checkpoints.close()
  (tmp_path / "config.json").unlink()
  folder = tmp_path / "checkpoints" / "4"
  found = metadata.read(str(folder))
  assert found == ocp.metadata(str(folder)).custom_metadata
  assert found["fields"] == {"seed": 3, "network.width": 0.5}
  assert found["code"] == metadata.find()
  assert found["facts"] == {"validation_error": 0.5}
  like = make_state()
  state = reader.load(str(tmp_path), 4, like)
  np.testing.assert_array_equal(state.parameters["conv1"]["kernel"], 4.0)
  other = like._replace(parameters={"conv1": {"kernel": jnp.ones((2, 4))}})
  with pytest.raises(
    metadata.CheckpointError,
    match=r"conv1.kernel is float32\[2,3\] there, and float32\[2,4\] here",
  ) as caught:
    reader.load(str(tmp_path), 4, other)
  assert not isinstance(caught.value, metadata.DamagedError)
  # Another state that Orbax reads as well as the one that was saved.
  file = folder / "_CHECKPOINT_METADATA"
  content = json.loads(file.read_text())
  kept_record = content["custom_metadata"]
  kept_record["arrays"]["step"][2] = "0" * 16
  file.write_text(json.dumps(content))
  with pytest.raises(metadata.DamagedError, match="is not as it was written"):
    reader.load(str(tmp_path), 4, like)
  body = {name: kept_record[name] for name in kept_record if name != "sum"}
  kept_record["sum"] = metadata._sum(body)
  file.write_text(json.dumps(content))
  with pytest.raises(
    metadata.DamagedError, match=": step are not what was sav"
  ):
    reader.load(str(tmp_path), 4, like)
  # Of a version that kept no record.
  content["custom_metadata"] = {}
  file.write_text(json.dumps(content))
  said = []
  step, _ = checkpoint.Checkpoints(str(tmp_path), keep=1).resume(
    like, said.append
  )
  assert step == 4
  (line,) = said
  assert "is of an earlier version: nothing tells whether" in line


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_checkpoint_that_cannot_be_read_now_stays_where_it_is(
  tmp_path, monkeypatch, number
):
  save(tmp_path, [4, 6], keep=2)
  says = f"6' cannot be read now: {os.strerror(number)}. It stays as it is."
  # As TensorStore says it, with a cause of its own; and as Python does.
  of_library = ValueError(f"DATA_LOSS: Error [os_error_code='{number}']")
  of_library.__cause__ = ValueError("Error reading")
  of_system = ValueError("read failed")
  of_system.__cause__ = OSError(number, "no matter")
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2)
  for place, error in (
    ("orbax.checkpoint.v1.load", of_library),
    ("orbax.checkpoint.v1.load", of_system),
    ("builtins.open", OSError(number, "no matter")),
  ):
    with monkeypatch.context() as patched:
      patched.setattr(place, fail_with(error))
      with pytest.raises(metadata.CheckpointError, match=says) as caught:
        checkpoints.resume(make_state(), print)
    assert not isinstance(caught.value, metadata.DamagedError)
  with monkeypatch.context() as patched:
    patched.setattr("builtins.open", fail_with(OSError(number, "no matter")))
    with pytest.raises(metadata.CheckpointError, match="read now"):
      checkpoints.prepare(print)
  assert reader.find_steps(str(tmp_path)) == [4, 6]
  # What is not there is not there tomorrow either.
  (tmp_path / "checkpoints/6/_CHECKPOINT_METADATA").unlink()
  assert checkpoints.resume(make_state(), print)[0] == 4
  assert reader.find_steps(str(tmp_path)) == [4]


def test_state_that_is_not_finite_is_not_saved(tmp_path):
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  with pytest.raises(
    FloatingPointError,
    match="6 elements of parameters.conv1.kernel .* after step 3, so",
  ):
    checkpoints.save(3, make_state(np.nan))
  checkpoints.close()
  assert reader.find_steps(str(tmp_path)) == []


def test_save_ends_whatever_is_raised_while_it_ends(tmp_path, monkeypatch):
  class Response:
    """Of a save that has failed by a limit of time of its own, or has not."""

    def __init__(self, error=None):
      self._error = error

    def result(self, timeout=None):
      if self._error is not None:
        raise self._error
      return True

  late = writer.Saving(str(tmp_path), 3, 0.0, Response(TimeoutError("late")))
  # Ends at once; the limit is for a failure of this test.
  with pytest.raises(TimeoutError, match="late"):
    late.finish(20.0)
  (tmp_path / "file").write_text("four")
  whole = writer.Saving(str(tmp_path), 3, 0.0, Response()).finish(20.0)
  assert whole.step == 3 and whole.num_bytes == 4
  monkeypatch.setattr(os.path, "getsize", fail_with(OSError(errno.ESTALE, "")))
  unknown = writer.Saving(str(tmp_path), 3, 0.0, Response()).finish(20.0)
  assert unknown.num_bytes == 0
  # One that goes on.
  go_on = threading.Event()
  slow = types.SimpleNamespace(result=go_on.wait)
  running = writer.Saving(str(tmp_path), 3, 0.0, slow)
  assert running.finish(0.0) is None
  go_on.set()
  assert running.finish(20.0).step == 3


def test_only_late_answers_to_a_read_that_failed_are_not_shown(monkeypatch):
  shown = []
  monkeypatch.setattr(sys, "unraisablehook", shown.append)
  monkeypatch.setattr(sys, "excepthook", shown.append)
  reader.mute()
  assert sys.excepthook == shown.append  # what ends a command is always said
  loop = asyncio.new_event_loop()
  loop.close()
  with pytest.raises(RuntimeError, match="Event loop is closed") as caught:
    loop.call_soon_threadsafe(print)
  found = types.SimpleNamespace(object=None, exc_value=caught.value)
  # TensorStore calls the loop itself: nothing of Python is above.
  for trace, is_shown in (
    (caught.tb.tb_next, False),
    (caught.tb, True),
    (None, True),
  ):
    found.exc_traceback = trace
    sys.unraisablehook(found)
    assert shown == ([found] if is_shown else [])
    shown.clear()


def test_line_that_is_cut_is_taken_off(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert report.repair(str(path)) == 0
  for text, whole in (("", ""), ("a\n", "a\n"), ("a\nbc", "a\n"), ("b", "")):
    path.write_text(text)
    assert report.repair(str(path)) == len(text) - len(whole)
    assert path.read_text() == whole


def test_revision_is_that_of_the_checkout(tmp_path):
  assert metadata.find_revision(tmp_path) is None
  git = tmp_path / ".git"
  (git / "refs" / "heads").mkdir(parents=True)
  (git / "HEAD").write_text("ref: refs/heads/main\n")
  (git / "packed-refs").write_text("# pack-refs\nabc refs/heads/main\n")
  assert metadata.find_revision(tmp_path) == "abc"
  (git / "refs" / "heads" / "main").write_text("def\n")
  assert metadata.find_revision(tmp_path) == "def"
  worktree = tmp_path / "other"
  worktree.mkdir()
  place = pathlib.Path(git / "worktrees" / "other")
  place.mkdir(parents=True)
  (worktree / ".git").write_text(f"gitdir: {place}\n")
  (place / "HEAD").write_text("ref: refs/heads/main\n")
  (place / "commondir").write_text("../..\n")
  assert metadata.find_revision(worktree) == "def"

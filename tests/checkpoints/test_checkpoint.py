"""Checkpoints of a few small arrays are kept, checked and refused."""

import asyncio
import contextlib
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import checkpoint, metadata, reader, writer
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import step as step_lib
from tests import fake_group

EARLIER = "was written by an earlier version of alexnet_jax: it has "


def make_state(value=1.0, number=0):
  return step_lib.TrainState(
    step=jnp.int32(number),
    is_finite=jnp.bool_(True),
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
  return mock.Mock(side_effect=error)


@contextlib.contextmanager
def raises(kind, message):
  """Expects exactly this kind; a DamagedError is a CheckpointError, too."""
  with pytest.raises(kind, match=message) as caught:
    yield caught
  assert caught.type is kind


def test_newest_best_and_every_so_often_are_kept_over_a_restart(tmp_path):
  errors = {2: 0.4, 4: 0.1, 5: 0.2, 7: 0.1, 8: 0.3}
  options = {"keep": 2, "best": 2, "every": 3}
  # Of the two of 0.1, both are among the two best.
  saved, left = save(tmp_path, range(1, 7), errors.items(), **options)
  assert [one.step for one in saved] == [1, 2, 3, 4, 5, 6]
  assert left == [3, 4, 5, 6]
  _, left = save(tmp_path, range(7, 10), errors.items(), **options)
  assert left == [3, 4, 6, 7, 8, 9]
  again = checkpoint.Checkpoints(str(tmp_path), **options)
  assert again.facts(4) == {"validation_error": 0.1}


def test_newest_is_never_kept_without_the_one_before_it(tmp_path):
  _, left = save(tmp_path, range(1, 4), keep=1)
  assert left == [2, 3]
  (tmp_path / "checkpoints/3/_CHECKPOINT_METADATA").unlink()
  again = checkpoint.Checkpoints(str(tmp_path), keep=1)
  assert again.resume(make_state(), print)[0] == 2


def test_steps_to_keep_follow_a_rule_tried_on_each_step():
  rng = np.random.default_rng(0)
  for _ in range(50):
    steps = rng.choice(30, 9, replace=False).tolist()
    errors = {step: rng.integers(3) / 2 for step in steps if rng.random() < 0.7}
    newest, best, every = rng.integers((1, 0, 1), (4, 3, 9)).tolist()
    found = writer.find_steps_to_keep(
      steps, errors, newest=newest, best=best, every=every
    )
    for step in steps:
      later = sum(other > step for other in steps)
      better = sum(
        (error, -other) < (errors.get(step, 9), -step)
        for other, error in errors.items()
      )
      is_best = step in errors and better < best
      stays = later < newest or is_best or step % every == 0
      assert (step in found) == stays


def test_checkpoint_is_checked_against_its_record(tmp_path, monkeypatch):
  (tmp_path / "config.json").write_text('{"seed": 3, "network.width": 0.5}')
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  # Edits and checkouts during a run do not change what runs.
  (tmp_path / "config.json").write_text("{")
  with monkeypatch.context() as patched:
    edited = fail_with(ValueError("edited"))
    patched.setattr(metadata, "find_code_versions", edited)
    checkpoints.save(4, make_state(4, 4), {"validation_error": 0.5})
    checkpoints.close()
  (tmp_path / "config.json").unlink()
  folder = tmp_path / "checkpoints" / "4"
  found = metadata.read(str(folder))
  assert found == ocp.metadata(str(folder)).custom_metadata
  # Beside fields that earlier versions lacked.
  assert found["fields"].items() >= {"seed": 3, "network.width": 0.5}.items()
  assert found["code"] == metadata.find_code_versions()
  assert found["facts"] == {"validation_error": 0.5}
  like = make_state()
  state = reader.load(str(tmp_path), 4, like)
  np.testing.assert_array_equal(state.parameters["conv1"]["kernel"], 4.0)
  other = like._replace(parameters={"conv1": {"kernel": jnp.ones((2, 4))}})
  shapes = r"conv1.kernel is float32\[2,3\] in it, and float32\[2,4\] with th"
  with raises(metadata.CheckpointError, shapes):
    reader.load(str(tmp_path), 4, other)
  # Another state that Orbax reads as well as the one that was saved.
  file = folder / "_CHECKPOINT_METADATA"
  content = json.loads(file.read_text())
  kept_record = content["custom_metadata"]
  kept_record["arrays"]["step"][2] = "0" * 16
  file.write_text(json.dumps(content))
  with raises(metadata.DamagedError, "is not as it was written"):
    reader.load(str(tmp_path), 4, like)
  body = {name: kept_record[name] for name in kept_record if name != "sum"}
  kept_record["sum"] = metadata._sum(body)
  file.write_text(json.dumps(content))
  with raises(metadata.DamagedError, ": step are not what was sav"):
    reader.load(str(tmp_path), 4, like)
  # Earlier versions wrote no record, or other arrays beside the parameters.
  content["custom_metadata"] = {}
  file.write_text(json.dumps(content))
  with raises(metadata.CheckpointError, f"{EARLIER}no checksums"):
    reader.load(str(tmp_path), 4, like)
  with raises(metadata.CheckpointError, EARLIER):
    checkpoint.Checkpoints(str(tmp_path), keep=1).resume(like, print)
  save(tmp_path / "new", [5], keep=1)
  record = metadata.read(str(tmp_path / "new" / "checkpoints" / "5"))
  record["arrays"]["old"] = record["arrays"].pop("step")
  with raises(metadata.CheckpointError, f"{EARLIER}an array 'old'. Set anoth"):
    metadata.check_shapes("5", record, like)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_checkpoint_that_cannot_be_read_now_stays_where_it_is(
  tmp_path, monkeypatch, number
):
  save(tmp_path, [4, 6], keep=2)
  message = f"cannot be read now: {os.strerror(number)}. It is left in"
  # As TensorStore raises it, with a cause of its own; and as Python does.
  of_library = ValueError(f"DATA_LOSS: Error [os_error_code='{number}']")
  of_library.__cause__ = ValueError("Error reading")
  of_system = ValueError("read failed")
  of_system.__cause__ = OSError(number, "no matter")
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2)
  resume = functools.partial(checkpoints.resume, make_state(), print)
  of_python = OSError(number, "no matter")
  open_for_saving = functools.partial(checkpoints.open_for_saving, print)
  for step, place, error, act in (
    (6, "orbax.checkpoint.v1.load", of_library, resume),
    (6, "orbax.checkpoint.v1.load", of_system, resume),
    (6, "builtins.open", of_python, resume),
    (4, "builtins.open", of_python, open_for_saving),
  ):
    with monkeypatch.context() as patched:
      patched.setattr(place, fail_with(error))
      with raises(metadata.CheckpointError, f"{step}' {message}"):
        act()
  assert reader.find_steps(str(tmp_path)) == [4, 6]
  # A file that does not exist is damage.
  (tmp_path / "checkpoints/6/_CHECKPOINT_METADATA").unlink()
  assert resume()[0] == 4
  assert reader.find_steps(str(tmp_path)) == [4]


def test_checkpoint_is_held_against_the_name_of_its_folder(tmp_path):
  save(tmp_path, [4, 6], keep=2)
  place = tmp_path / "checkpoints"
  for name in ("80", "9" * 20):
    (place / "6").rename(place / name)
    again = checkpoint.Checkpoints(str(tmp_path), keep=2)
    said = f"checkpoints/{name}' is that of step 6, not of step {name}. Rename"
    with raises(metadata.CheckpointError, said):
      again.resume(make_state(), print)
    with raises(metadata.CheckpointError, said):
      reader.load(str(tmp_path), int(name), make_state())
    (place / name).rename(place / "6")
  assert again.resume(make_state(), print)[0] == 6
  # Records of earlier versions have no step; the state has.
  file = place / "6" / "_CHECKPOINT_METADATA"
  content = json.loads(file.read_text())
  record = content["custom_metadata"]
  del record["step"], record["sum"]
  record["sum"] = metadata._sum(record)
  file.write_text(json.dumps(content))
  assert int(reader.load(str(tmp_path), 6, make_state()).step) == 6
  (place / "6").rename(place / "80")
  with raises(metadata.CheckpointError, "is that of step 6, not of step 80"):
    checkpoint.Checkpoints(str(tmp_path), keep=2).resume(make_state(), print)


def test_save_is_read_back_before_it_counts(tmp_path, monkeypatch):
  said = "of step 6 is not stored as it was written: .* damaged: it lacks "
  # Orbax takes the brackets for a pattern, and finds nothing of what it wrote.
  with raises(metadata.CheckpointError, f"{said}step"):
    save(tmp_path / "a[v1]b", [6], keep=2)
  check = reader.check_complete

  def check_after_loss(folder):
    base = {"driver": "file", "path": f"{folder}/state/"}
    store = reader.tensorstore.KvStore.open({"driver": "ocdbt", "base": base})
    store.result().write("parameters.conv1.kernel/c/0/0", None).result()
    check(folder)

  save(tmp_path, [4], keep=2)
  monkeypatch.setattr(reader, "check_complete", check_after_loss)
  with raises(metadata.CheckpointError, f"{said}a part of .*conv1.kernel"):
    save(tmp_path, [6], keep=2)


def refuse(number, message):
  return fail_with(OSError(number, os.strerror(number), message))


def test_checkpoint_that_cannot_be_deleted_or_moved_says_so(
  tmp_path, monkeypatch
):
  save(tmp_path, [2, 4], keep=2)
  denied = refuse(errno.EACCES, "a file")
  with monkeypatch.context() as patched:
    patched.setattr(shutil, "rmtree", denied)
    said = (
      "step 6 is saved, but the old one '.*checkpoints/2' cannot be deleted: "
      "Permission denied. Delete it, or set --workdir; .* after step 6"
    )
    with raises(metadata.CheckpointError, said):
      save(tmp_path, [6], keep=2)
  assert reader.find_steps(str(tmp_path)) == [2, 4, 6]
  (tmp_path / "checkpoints/6/_CHECKPOINT_METADATA").unlink()
  again = checkpoint.Checkpoints(str(tmp_path), keep=2)
  with monkeypatch.context() as patched:
    patched.setattr(os, "rename", denied)
    said = "6' is broken, and cannot be moved to '.*broken-6': Permission den"
    with raises(metadata.CheckpointError, said):
      again.resume(make_state(), print)
  with monkeypatch.context() as patched:
    patched.setattr(os, "listdir", denied)
    said = "checkpoints' cannot be read now: Permission denied. Start again"
    with raises(metadata.CheckpointError, said):
      again.steps()


def test_failed_collective_of_a_save_is_a_lost_process(tmp_path, monkeypatch):
  group, _ = fake_group.make_groups("one", "two")
  gloo = jax.errors.JaxRuntimeError("INTERNAL: Gloo AllGather failed: reset")
  late = TimeoutError("Timed out while waiting for async_write_complete.")
  late.__cause__ = gloo
  # As it comes out of an event loop, which drops its cause.
  bare = TimeoutError("ChainedFuture completed 0/1 futures: Gloo AllGather")
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  for error, kind in (
    (gloo, jax.errors.JaxRuntimeError),
    (late, jax.errors.JaxRuntimeError),
    (bare, jax.errors.JaxRuntimeError),
    (ValueError("UNKNOWN: Gloo AllGather failed: reset"), ValueError),
    (full, metadata.CheckpointError),
  ):
    checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2, group=group)
    checkpoints._checkpointer = mock.Mock(
      checkpoints=[], save_async=fail_with(error)
    )
    said = "Gloo AllGather" if error != full else "No space left"
    with raises(kind, said) as caught:
      checkpoints.save(3, make_state(3, 3))
    lost = group_lib.find_lost_connection(caught.value)
    assert (lost is None) == (error is full)


def test_state_that_is_not_finite_is_not_saved(tmp_path):
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  said = "6 elements of parameters.conv1.kernel .* after step 3, so"
  with pytest.raises(FloatingPointError, match=said):
    checkpoints.save(3, make_state(np.nan))
  checkpoints.close()
  assert reader.find_steps(str(tmp_path)) == []


def test_save_ends_whatever_is_raised_while_it_ends(tmp_path, monkeypatch):
  def save(result):
    response = types.SimpleNamespace(result=result)
    return writer.PendingSave(str(tmp_path), 3, 0.0, response)

  # Ends at once, though the save failed with a TimeoutError; the limits of 20 s
  # are for a failure of this test.
  with pytest.raises(TimeoutError, match="late"):
    save(fail_with(TimeoutError("late"))).finish(20.0)
  (tmp_path / "file").write_text("four")
  saved = save(lambda: True).finish(20.0)
  assert saved.step == 3 and saved.num_bytes == 4
  monkeypatch.setattr(os.path, "getsize", fail_with(OSError(errno.ESTALE, "")))
  assert save(lambda: True).finish(20.0).num_bytes == 0
  # One that is still under way.
  event = threading.Event()
  running = save(event.wait)
  assert running.finish(0.0) is None
  event.set()
  assert running.finish(20.0).step == 3


def test_only_late_answers_to_a_failed_read_are_muted(monkeypatch):
  shown = []
  monkeypatch.setattr(sys, "unraisablehook", shown.append)
  monkeypatch.setattr(sys, "excepthook", shown.append)
  reader.mute_orbax()
  assert sys.excepthook == shown.append  # what ends a command is always shown
  loop = asyncio.new_event_loop()
  loop.close()
  with pytest.raises(RuntimeError, match="Event loop is closed") as caught:
    loop.call_soon_threadsafe(print)
  found = types.SimpleNamespace(object=None, exc_value=caught.value)
  # TensorStore calls the loop itself: no Python code is above.
  cases = ((caught.tb.tb_next, []), (caught.tb, [found]), (None, [found]))
  for trace, expected in cases:
    found.exc_traceback = trace
    sys.unraisablehook(found)
    assert shown == expected
    shown.clear()


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_revision_is_that_of_the_checkout(tmp_path, monkeypatch):
  def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", top, *identity, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  top = tmp_path / "top"
  (top / "installed").mkdir(parents=True)
  assert metadata.find_revision(top) is None
  git("init")
  assert metadata.find_revision(top) is None  # no commit yet
  git("commit", "--allow-empty", "--message=a")
  first = git("rev-parse", "HEAD")
  assert metadata.find_revision(top) == first
  git("worktree", "add", "../other", "-b", "other")
  git("commit", "--allow-empty", "--message=b")
  assert metadata.find_revision(tmp_path / "other") == first
  assert metadata.find_revision(top) != first
  # A package that is installed inside somebody else's checkout.
  assert metadata.find_revision(top / "installed") is None
  monkeypatch.setenv("PATH", "")
  assert metadata.find_revision(top) is None

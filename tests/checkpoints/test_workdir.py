"""A workdir belongs to one process and one config."""

import errno
import fcntl
import json
import os
import socket
from unittest import mock

import pytest

from alexnet_jax.checkpoints import members as members_lib
from alexnet_jax.checkpoints import workdir
from alexnet_jax.settings import fields

# Not used where there are no checkpoints.
PROGRAM = mock.MagicMock()


def contents(path) -> dict[str, bytes]:
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob("*")
    if file.is_file() and file.name != workdir.LOCK_FILE
  }


def acquire(path, config, found=None, *, accept_for=None):
  return members_lib.acquire(
    str(path),
    config.to_dict(),
    found or {},
    may_change=fields.find_changeable(config.optimizer.schedule),
    accept_for=accept_for,
  )


def test_changed_config_is_accepted_on_request_and_the_earlier_one_kept(
  tiny_config, tmp_path
):
  found = {"dataset": "digits/1.0.0"}
  assert not acquire(tmp_path, tiny_config, found).changes
  first = contents(tmp_path)
  assert list(first) == ["config.json"]
  # The layout does not change results.
  tiny_config.layout.name = "two_column"
  assert not acquire(tmp_path, tiny_config, found).changes
  second = contents(tmp_path)
  tiny_config.optimizer.learning_rate = 0.5
  change = "optimizer.learning_rate: 0.01 in the workdir, 0.5 now"
  with pytest.raises(ValueError, match=change):
    acquire(tmp_path, tiny_config, found)
  assert contents(tmp_path) == second
  acquired = acquire(tmp_path, tiny_config, found, accept_for=PROGRAM)
  assert acquired.changes == (
    f"changed after step 0, as --allow_config_changes says: {change}",
  )
  del acquired  # which holds the lock
  kept = workdir.read_config(str(tmp_path))
  assert kept["optimizer.learning_rate"] == 0.5
  backup = {"config.step_0.json": second["config.json"]}
  assert backup.items() <= contents(tmp_path).items()
  # The config of a start without a checkpoint is not kept.
  tiny_config.seed = 7
  acquire(tmp_path, tiny_config, found, accept_for=PROGRAM)
  assert backup.items() <= contents(tmp_path).items()
  assert len(contents(tmp_path)) == 2


@pytest.mark.parametrize("accept_for", [None, PROGRAM])
def test_workdir_of_an_earlier_version_is_refused_in_a_line(
  accept_for, tiny_config, tmp_path
):
  earlier = workdir.flatten_config(tiny_config.to_dict(), {"dataset": "digits"})
  for new, old in (
    ("grad_accumulation_steps", "accumulate_batches"),
    ("eval_every_steps", "validate_every_steps"),
    ("optimizer.ema_decay", "optimizer.average_decay"),
    ("compute_dtype", "compute_precision"),
  ):
    earlier[old] = earlier.pop(new)
  earlier["layout.mesh.any_name"] = 2
  (tmp_path / "config.json").write_text(json.dumps(earlier))
  make_checkpoint(tmp_path, 6)
  before = contents(tmp_path)
  with pytest.raises(ValueError) as refused:
    acquire(tmp_path, tiny_config, accept_for=accept_for)
  assert str(refused.value) == (
    f"the workdir {str(tmp_path)!r} was written by an earlier version of "
    "alexnet_jax: this one has no field accumulate_batches, compute_precision, "
    "optimizer.average_decay and 1 more. Set another --workdir, or use that "
    "version."
  )
  assert contents(tmp_path) == before


def test_ensemble_and_its_members_are_locked_together(tiny_config, tmp_path):
  tiny_config.ensemble = 2
  acquired = acquire(tmp_path, tiny_config)
  with pytest.raises(OSError, match="member_1' is in use by process"):
    workdir.Lock(str(tmp_path / "member_1"))
  with pytest.raises(OSError, match="is in use by process"):
    acquire(tmp_path, tiny_config)
  for lock in acquired.locks:
    lock.release()
  # One of the members was resumed alone, with another seed.
  other = members_lib.find_config(tiny_config.to_dict() | {"seed": 5}, 1)
  member = workdir.flatten_config(other, {})
  workdir.write_config(str(tmp_path / "member_1"), member)
  before = contents(tmp_path)
  said = "member_1' .* seed: 6 in the workdir, 1 now"
  with pytest.raises(ValueError, match=said):
    acquire(tmp_path, tiny_config)
  assert contents(tmp_path) == before


def make_checkpoint(folder, step):
  """Makes what is found as a checkpoint; no test here reads it."""
  path = folder / "checkpoints" / str(step)
  path.mkdir(parents=True)
  (path / "_CHECKPOINT_METADATA").write_text("{}")


@pytest.mark.parametrize(
  ("before", "now", "keeps_config"),
  [(1, 2, True), (2, 1, True), (2, 3, True)]
  + [(1, 2, False), (2, 1, False), (3, 2, False)],
)
def test_other_number_of_members_is_refused_and_makes_nothing(
  before, now, keeps_config, tiny_config, tmp_path
):
  tiny_config.ensemble = before
  acquire(tmp_path, tiny_config)
  members = [tmp_path / f"member_{member}" for member in range(before)]
  for folder in members if before > 1 else [tmp_path]:
    make_checkpoint(folder, 6)
  if not keeps_config:
    (tmp_path / "config.json").unlink()
  files = sorted(tmp_path.rglob("*"))
  tiny_config.ensemble = now
  expected = "step 6, which is not of a run of ensemble"
  if keeps_config:
    expected = f"a run of ensemble={before}, which cannot resume with {now}"
    with pytest.raises(ValueError, match=f"ensemble: {before} in the workdir"):
      acquire(tmp_path, tiny_config)
  with pytest.raises(ValueError, match=expected):
    acquire(tmp_path, tiny_config, accept_for=PROGRAM)
  assert sorted(tmp_path.rglob("*")) == files


def test_changed_ensemble_keeps_the_earlier_configs_by_its_step(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.ensemble = 2
  acquire(tmp_path, tiny_config)
  folders = [tmp_path, tmp_path / "member_0", tmp_path / "member_1"]
  rates = [tiny_config.optimizer.learning_rate]
  monkeypatch.setattr(workdir, "_check_fits", lambda *_, **__: None)
  program = mock.MagicMock()
  for step in (6, 9):
    # The run does not resume from a step that only one member has.
    make_checkpoint(folders[1], step + 1)
    for folder in folders[1:]:
      make_checkpoint(folder, step)
    rates.append(rates[-1] / 2)
    tiny_config.optimizer.learning_rate = rates[-1]
    acquired = acquire(tmp_path, tiny_config, accept_for=program)
    (line,) = acquired.changes
    assert line.startswith(f"changed after step {step}, as")
    del acquired  # which holds the locks
  for folder in folders:
    kept = [
      json.loads((folder / name).read_text())["optimizer.learning_rate"]
      for name in ("config.step_6.json", "config.step_9.json", "config.json")
    ]
    assert kept == rates
    assert not [*folder.glob("*.partial")]


def test_checkpoint_of_another_run_is_refused_until_it_is_accepted(
  tiny_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(workdir, "_check_fits", lambda *_, **__: None)
  acquire(tmp_path, tiny_config)
  make_checkpoint(tmp_path, 6)
  records = {6: workdir.flatten_config(tiny_config.to_dict(), {})}
  # An earlier version had fewer fields, and layouts may differ.
  del records[6]["label_smoothing"]
  records[6]["layout.name"] = "two_column"
  monkeypatch.setattr(
    workdir.metadata,
    "read",
    lambda folder: {"fields": records[int(os.path.basename(folder))]},
  )
  acquire(tmp_path, tiny_config)
  # A change that is accepted, also when the start after it is killed.
  tiny_config.optimizer.learning_rate = 0.5
  acquire(tmp_path, tiny_config, accept_for=PROGRAM)
  acquire(tmp_path, tiny_config)
  make_checkpoint(tmp_path, 9)
  records[9] = records[6] | {"seed": 7}
  before = contents(tmp_path)
  said = (
    r"checkpoints/9' is of another run \(.*seed: 7 in the checkpoint, 0 now"
  )
  with pytest.raises(ValueError, match=said):
    acquire(tmp_path, tiny_config)
  assert contents(tmp_path) == before
  acquire(tmp_path, tiny_config, accept_for=PROGRAM)
  acquire(tmp_path, tiny_config)


@pytest.mark.parametrize("name", ["a[v1]", "a]", "a*", "a?", "a\\b"])
def test_path_that_loses_checkpoints_is_refused(name, tmp_path, monkeypatch):
  (tmp_path / name).mkdir()
  said = "cannot be written: its path .* has .*, and a checkpoint in it could"
  for path in (tmp_path / name, tmp_path / name / "runs" / "x"):
    with pytest.raises(OSError, match=said):
      workdir.check_writable(str(path))
  monkeypatch.chdir(tmp_path / name)
  with pytest.raises(OSError, match=said):
    workdir.check_writable("runs/x")


def test_folder_of_checkpoints_that_is_none_is_refused(tiny_config, tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(OSError, match="checkpoints is no directory"):
    acquire(tmp_path, tiny_config)
  assert [*tmp_path.iterdir()] == [tmp_path / "checkpoints"]


def test_second_writer_is_refused_until_the_first_has_released(tmp_path):
  first = workdir.Lock(str(tmp_path))
  with pytest.raises(OSError) as refused:
    workdir.Lock(str(tmp_path))
  said = str(refused.value)
  assert f"process {os.getpid()} on {socket.gethostname()}, since 2" in said
  assert said.endswith("or set --workdir to start another.")
  first.release()
  workdir.Lock(str(tmp_path)).release()


def test_leftover_lock_file_locks_nothing(tmp_path):
  file = tmp_path / workdir.LOCK_FILE
  file.write_text("what is this" * 100)
  held = workdir.Lock(str(tmp_path))
  assert json.loads(file.read_text())["pid"] == os.getpid()
  # As if taken a moment ago by a process that has not written yet.
  file.write_text("")
  with pytest.raises(OSError, match="a process that has not written its n"):
    workdir.Lock(str(tmp_path))
  held.release()


@pytest.mark.parametrize(
  ("number", "expected"),
  [
    (errno.ENOLCK, "cannot be locked.*No locks available. Set --workdir"),
    (errno.ENOSYS, "cannot be locked.*with locks"),
    (errno.EIO, "cannot be written: Input/output error. Set --workdir."),
  ],
)
def test_file_system_without_locks_is_named(
  number, expected, tmp_path, monkeypatch
):
  error = OSError(number, os.strerror(number))
  monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=error))
  with pytest.raises(OSError, match=expected):
    workdir.Lock(str(tmp_path))
  with pytest.raises(OSError, match="cannot be written: No such file"):
    workdir.Lock(str(tmp_path / "none"))

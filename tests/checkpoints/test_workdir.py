import errno
import fcntl
import json
import os
import socket
from unittest import mock

import pytest

from alexnet_jax.checkpoints import members as members_lib
from alexnet_jax.checkpoints import workdir

# Nobody asks it anything where there are no checkpoints.
PROGRAM = object()


def contents(path) -> dict[str, bytes]:
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob("*")
    if file.is_file() and file.name != workdir.FILE
  }


def test_changed_config_is_accepted_on_request_and_the_earlier_one_kept(
  tiny_config, tmp_path
):
  path, found = str(tmp_path), {"dataset": "digits/1.0.0"}
  assert not workdir.acquire(path, tiny_config.to_dict(), found).changes
  first = contents(tmp_path)
  assert list(first) == ["config.json"]
  # Where it is computed changes nothing.
  tiny_config.layout.name = "two_column"
  assert not workdir.acquire(path, tiny_config.to_dict(), found).changes
  second = contents(tmp_path)
  tiny_config.optimizer.learning_rate = 0.5
  with pytest.raises(ValueError, match="learning_rate: 0.01 there, 0.5 here"):
    workdir.acquire(path, tiny_config.to_dict(), found)
  assert contents(tmp_path) == second
  said = workdir.acquire(path, tiny_config.to_dict(), found, accept_for=PROGRAM)
  assert said.changes == (
    "changed after step 0, as --allow_config_changes says: "
    "optimizer.learning_rate: 0.01 there, 0.5 here",
  )
  del said  # which holds the directory
  assert workdir.read(path)["optimizer.learning_rate"] == 0.5
  aside = {"config.step_0.json": second["config.json"]}
  assert aside.items() <= contents(tmp_path).items()
  # That of which nothing came is not kept.
  tiny_config.seed = 7
  workdir.acquire(path, tiny_config.to_dict(), found, accept_for=PROGRAM)
  assert aside.items() <= contents(tmp_path).items()
  assert len(contents(tmp_path)) == 2


def test_ensemble_is_claimed_and_locked_as_a_whole(tiny_config, tmp_path):
  tiny_config.ensemble = 2
  fields = tiny_config.to_dict()
  held = workdir.acquire(str(tmp_path), fields, {})
  with pytest.raises(OSError, match="member_1' is in use by process"):
    workdir.Lock(str(tmp_path / "member_1"))
  with pytest.raises(OSError, match="is in use by process"):
    workdir.acquire(str(tmp_path), fields, {})
  for one in held.locks:
    one.release()
  # One of the members has gone on alone, as something else.
  other = tiny_config.to_dict() | {"seed": 5}
  alone = members_lib.find_config(other, 1)
  workdir.keep(str(tmp_path / "member_1"), workdir.to_fields(alone, {}))
  before = contents(tmp_path)
  with pytest.raises(ValueError, match="member_1' .* seed: 6 there, 1 here"):
    workdir.acquire(str(tmp_path), fields, {})
  assert contents(tmp_path) == before


def make_checkpoint(folder, step):
  """What tells that there is one: nobody reads it here."""
  place = folder / "checkpoints" / str(step)
  place.mkdir(parents=True)
  (place / "_CHECKPOINT_METADATA").write_text("{}")


@pytest.mark.parametrize(
  ("there", "now", "keeps_config"),
  [
    (1, 2, True),
    (2, 1, True),
    (2, 3, True),
    (1, 2, False),
    (2, 1, False),
    (3, 2, False),
  ],
)
def test_other_number_of_members_is_refused_and_makes_nothing(
  there, now, keeps_config, tiny_config, tmp_path
):
  tiny_config.ensemble = there
  workdir.acquire(str(tmp_path), tiny_config.to_dict(), {})
  members = [tmp_path / f"member_{member}" for member in range(there)]
  for folder in members if there > 1 else [tmp_path]:
    make_checkpoint(folder, 6)
  if not keeps_config:
    (tmp_path / "config.json").unlink()
  before = sorted(tmp_path.rglob("*"))
  tiny_config.ensemble = now
  fields = tiny_config.to_dict()
  expected = (
    f"a run of ensemble={there}, which cannot go on as one of {now}"
    if keeps_config
    else "step 6, which is not of a run of ensemble"
  )
  if keeps_config:
    with pytest.raises(ValueError, match=f"ensemble: {there} there, {now} her"):
      workdir.acquire(str(tmp_path), fields, {})
  with pytest.raises(ValueError, match=expected):
    workdir.acquire(str(tmp_path), fields, {}, accept_for=PROGRAM)
  assert sorted(tmp_path.rglob("*")) == before


def test_changed_ensemble_keeps_the_earlier_configs_by_its_step(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.ensemble = 2
  workdir.acquire(str(tmp_path), tiny_config.to_dict(), {})
  folders = [tmp_path, tmp_path / "member_0", tmp_path / "member_1"]
  rates = [tiny_config.optimizer.learning_rate]
  monkeypatch.setattr(workdir, "_check_fits", lambda *_, **__: None)
  program = mock.MagicMock()
  for step in (6, 9):
    # What one member has more is not gone on from.
    make_checkpoint(folders[1], step + 1)
    for folder in folders[1:]:
      make_checkpoint(folder, step)
    rates.append(rates[-1] / 2)
    tiny_config.optimizer.learning_rate = rates[-1]
    found = workdir.acquire(
      str(tmp_path), tiny_config.to_dict(), {}, accept_for=program
    )
    (line,) = found.changes
    assert line.startswith(f"changed after step {step}, as")
    del found  # which holds the directories
  for folder in folders:
    kept = [
      json.loads((folder / name).read_text())["optimizer.learning_rate"]
      for name in ("config.step_6.json", "config.step_9.json", "config.json")
    ]
    assert kept == rates
    assert not [*folder.glob("*.partial")]


def test_second_writer_is_refused_in_words_until_the_first_has_gone(tmp_path):
  first = workdir.Lock(str(tmp_path))
  with pytest.raises(OSError) as refused:
    workdir.Lock(str(tmp_path))
  said = str(refused.value)
  assert f"process {os.getpid()} on {socket.gethostname()}, since 2" in said
  assert said.endswith("or set --workdir to start another.")
  first.release()
  workdir.Lock(str(tmp_path)).release()


def test_file_that_is_left_over_locks_nothing(tmp_path):
  (tmp_path / workdir.FILE).write_text("what is this" * 100)
  held = workdir.Lock(str(tmp_path))
  assert json.loads((tmp_path / workdir.FILE).read_text())["pid"] == os.getpid()
  # Taken a moment ago by one that has not written yet.
  (tmp_path / workdir.FILE).write_text("")
  with pytest.raises(OSError, match="a process that has not given its name"):
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
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with pytest.raises(OSError, match=expected):
    workdir.Lock(str(tmp_path))
  with pytest.raises(OSError, match="cannot be written: No such file"):
    workdir.Lock(str(tmp_path / "none"))

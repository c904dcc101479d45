import errno
import fcntl
import json
import os
import socket

import pytest

from alexnet_jax.checkpoints import lock


def test_second_writer_is_refused_in_words_until_the_first_has_gone(tmp_path):
  first = lock.Lock(str(tmp_path))
  with pytest.raises(OSError) as refused:
    lock.Lock(str(tmp_path))
  said = str(refused.value)
  assert f"process {os.getpid()} on {socket.gethostname()}, since 2" in said
  assert said.endswith("or set --workdir to start another.")
  first.release()
  lock.Lock(str(tmp_path)).release()


def test_file_that_is_left_over_locks_nothing(tmp_path):
  (tmp_path / lock.FILE).write_text("what is this" * 100)
  held = lock.Lock(str(tmp_path))
  assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
  # Taken a moment ago by one that has not written yet.
  (tmp_path / lock.FILE).write_text("")
  with pytest.raises(OSError, match="a process that has not given its name"):
    lock.Lock(str(tmp_path))
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
    lock.Lock(str(tmp_path))
  with pytest.raises(OSError, match="cannot be written: No such file"):
    lock.Lock(str(tmp_path / "none"))

"""A folder that all processes see, or not."""

import threading

from alexnet_jax.distributed import group, shared_filesystem
from tests import fake_group


def test_folder_that_all_see_is_left_as_it_was(tmp_path):
  groups = fake_group.make_groups("a", "b", "c")
  found = fake_group.in_all(
    groups, lambda one: shared_filesystem.find_problems(one, str(tmp_path))
  )
  assert found == [[None] * 3] * 3
  assert not list(tmp_path.iterdir())
  assert shared_filesystem.find_problems(group.alone(), str(tmp_path)) == [None]
  assert not list(tmp_path.iterdir())


def test_folder_that_is_another_one_elsewhere_is_named(tmp_path, monkeypatch):
  groups = fake_group.make_groups("a", "b", "c")
  for name in ("here", "there"):
    (tmp_path / name).mkdir()
  find_path = shared_filesystem._path

  def find_of_process(offer, index):
    # What process 1 calls `here` is another folder.
    if threading.current_thread().name.endswith("_1"):
      offer = {**offer, "folder": str(tmp_path / "there")}
    return find_path(offer, index)

  monkeypatch.setattr(shared_filesystem, "_path", find_of_process)
  monkeypatch.setattr(shared_filesystem, "_RETRY_SECONDS", 0.05)

  def find(one):
    threading.current_thread().name = f"process_{one.index}"
    folder = str(tmp_path / "here")
    return shared_filesystem.find_problems(one, folder, shown_seconds=0.3)

  found = fake_group.in_all(groups, find)
  assert found[0] == found[1] == found[2]
  assert found[0][0] is None and found[0][2] is None
  assert "process 0 has made" in found[0][1] and "Set --workdir" in found[0][1]
  assert not list((tmp_path / "here").iterdir())
  assert not list((tmp_path / "there").iterdir())


def test_folder_that_cannot_be_written_is_named(tmp_path):
  groups = fake_group.make_groups("a", "b")
  folder = str(tmp_path / "none")
  for problems in fake_group.in_all(
    groups, lambda one: shared_filesystem.find_problems(one, folder)
  ):
    assert "no file can be made" in problems[0] and problems[1] is None

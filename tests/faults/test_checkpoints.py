"""Checkpoints that are cut, altered or gone, full disks, kills while saving."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from alexnet_jax.checkpoints import metadata, reader
from tests import processes

pytestmark = pytest.mark.faults

FIELDS = {"eval_every_steps": 3}


@pytest.fixture(scope="module")
def made(folder):
  """A folder with a run of nine steps, that has saved 3, 6 and 9."""
  tmp = folder("whole")
  assert "checkpoints: 3 saved, " in run(tmp).out
  lines = (tmp / "workdir" / "metrics.jsonl").read_text().splitlines()
  saved = [
    line for line in map(json.loads, lines) if "checkpoint_seconds" in line
  ]
  assert [line["step"] for line in saved] == [3, 6, 9]
  for line in saved:
    assert 0 < line["checkpoint_blocked_seconds"] < line["checkpoint_seconds"]
    folder = tmp / "workdir" / "checkpoints" / str(line["step"])
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert line["checkpoint_bytes"] == sum(
      path.stat().st_size for path in files
    )
  return tmp


@pytest.fixture
def copied(made, request):
  """A copy of that run."""
  tmp = made.parent / request.node.name
  shutil.copytree(made, tmp)
  return tmp


def run(tmp, code=0):
  return processes.train(tmp, FIELDS, config="one_device", code=code)


def find_data(checkpoint: pathlib.Path) -> pathlib.Path:
  """The largest file of a checkpoint: its arrays."""
  files = [path for path in checkpoint.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def truncate(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(data)


def arrays(tmp, step):
  """The fingerprints of the arrays of a checkpoint."""
  return metadata.read(str(tmp / "workdir/checkpoints" / str(step)))["arrays"]


def names(tmp):
  return {path.name for path in (tmp / "workdir" / "checkpoints").iterdir()}


def test_cut_and_altered_checkpoints_are_named_and_the_intact_one_is_used(
  copied, made
):
  place = copied / "workdir" / "checkpoints"
  truncate(find_data(place / "9"))
  flip(find_data(place / "6"))
  (place / "broken-6").mkdir()  # of an earlier time
  (place / "of a friend").mkdir()
  report = copied / "workdir" / "metrics.jsonl"
  whole = report.read_text()
  report.write_text(whole + '{"step": 10, "train')
  out = run(copied).out
  for step, now in ((9, "broken-9"), (6, "broken-6-2")):
    assert f"checkpoint '{place / str(step)}' is damaged: " in out
    assert f"It is now '{place / now}'." in out
  assert "resumes after step 3 of 9" in out
  assert names(copied) == {
    *("3", "6", "9", "broken-6", "broken-6-2", "broken-9", "of a friend")
  }
  # Once more to the end, and to the same bits.
  for step in (6, 9):
    assert arrays(copied, step) == arrays(made, step)
  assert "the last line of" in out and "19 bytes are removed" in out
  lines = report.read_text()
  assert lines.startswith(whole)
  assert [json.loads(line) for line in lines.splitlines()]


def test_checkpoint_that_lacks_files_is_named(copied, made):
  place = copied / "workdir" / "checkpoints"
  find_data(place / "9").unlink()
  (place / "12").mkdir()
  flip(place / "3" / "_CHECKPOINT_METADATA")
  out = run(copied).out
  assert f"'{place / '12'}' is damaged: it has no _CHECKPOINT_METADATA" in out
  assert f"'{place / '9'}' is damaged: it cannot be read" in out
  assert f"'{place / '3'}' is damaged: _CHECKPOINT_METADATA" in out
  assert "resumes after step 6 of 9" in out
  assert names(copied) == {"6", "9", "broken-12", "broken-9", "broken-3"}
  assert arrays(copied, 9) == arrays(made, 9)


def test_processes_agree_on_the_intact_checkpoint(copied, made):
  place = copied / "workdir" / "checkpoints"
  flip(find_data(place / "9"))
  (code, out, errors), other = processes.finish(
    processes.start_training(copied, FIELDS, count=2)
  )
  assert (code, errors) == (0, "") == (other[0], other[2])
  assert f"checkpoint '{place / '9'}' is damaged: " in out
  assert "resumes after step 6 of 9" in out
  assert names(copied) == {"3", "6", "9", "broken-9"}
  # Read and written by halves: the step's own sums round otherwise.
  assert arrays(copied, 6) == arrays(made, 6)


def test_run_without_an_intact_checkpoint_is_not_started_again(copied):
  place = copied / "workdir" / "checkpoints"
  for step, damage in (
    ("3", truncate),
    ("6", flip),
    ("9", pathlib.Path.unlink),
  ):
    damage(find_data(place / step))
  line = run(copied, code=1).errors
  assert line.startswith(
    f"error: none of the checkpoints in '{place}' is intact"
  )
  for step in (3, 6, 9):
    assert f"'{place / str(step)}' is damaged: " in line
  assert names(copied) == {"3", "6", "9"}


def test_evaluation_refuses_a_damaged_checkpoint_and_names_an_intact_one(
  copied,
):
  place = copied / "workdir" / "checkpoints"
  flip(find_data(place / "9"))
  truncate(find_data(place / "6"))
  flags = (f"--workdir={copied}/workdir", f"--data_dir={copied.parent}/data")
  ((code, _, errors),) = processes.finish(
    processes.start(copied, 1, flags, module="evaluate")
  )
  assert code == 1
  (line,) = errors.splitlines()
  assert line.startswith(f"error: the checkpoint '{place / '9'}' is damaged: ")
  assert line.endswith("Set --checkpoint_step=3, which is intact.")
  assert names(copied) == {"3", "6", "9"}


def test_kill_while_saving_leaves_the_checkpoint_before_it(copied, made):
  place = copied / "workdir" / "checkpoints"
  for step in ("6", "9"):
    shutil.rmtree(place / step)
  # Steps to come have no folder yet, so a save is seen as it begins.
  running = processes.start_training(
    copied,
    FIELDS | {"checkpoint_every_steps": 1, "num_epochs": 1000.0},
    config="one_device",
  )
  processes.wait_until(
    lambda: [*place.glob("*.orbax-checkpoint-tmp")], running, poll_seconds=5e-4
  )
  running[0].kill()
  ((code, _, _),) = processes.finish(running)
  assert code == -9
  # A save takes some 100 ms, and the kill came within a few of its begin.
  assert [*place.glob("*.orbax-checkpoint-tmp")]
  newest = max(int(name) for name in names(copied) if name.isdecimal())
  out = run(copied).out
  assert f"resumes after step {newest} of 9" in out
  assert "damaged" not in out
  assert not [*place.glob("*tmp*")]
  assert arrays(copied, 9) == arrays(made, 9)


@pytest.fixture
def full(made):
  """A folder on a disk of its own, that has room for two checkpoints."""
  place = made.parent / "own_disk"
  place.mkdir()
  size = sum(
    path.stat().st_size for path in (made / "workdir/checkpoints/9").rglob("*")
  )
  options = ["-t", "tmpfs", "-o", f"size={2.5 * size:.0f}", "tmpfs", str(place)]
  if subprocess.run(["mount", *options], capture_output=True).returncode:
    pytest.skip("needs the right to mount a disk of its own")
  yield place
  subprocess.run(["umount", str(place)], check=True)


def test_full_disk_stops_the_run_and_keeps_the_checkpoints(full, made):
  line = run(full, code=1).errors
  assert "error: the checkpoint of step 9 cannot be written to" in line
  assert "No space left on device; that of step 6 is kept. Make room" in line
  assert names(full) == {"3", "6", "9.orbax-checkpoint-tmp"}
  for step in (3, 6):
    assert arrays(full, step) == arrays(made, step)
  # Room: the same command goes on, and what the failed save has left is gone.
  shutil.rmtree(full / "workdir" / "checkpoints" / "3")
  subprocess.run(["mount", "-o", "remount,size=40m", str(full)], check=True)
  out = run(full).out
  assert "resumes after step 6 of 9" in out
  assert names(full) == {"6", "9"}
  assert arrays(full, 9) == arrays(made, 9)


def run_as_root(*command) -> bool:
  return subprocess.run(command, capture_output=True).returncode == 0


def make_immutable(place):
  return run_as_root("chattr", "+i", str(place))


def make_read_only(place):
  return run_as_root("mount", "-o", "remount,ro", str(place))


def give_away(place):
  os.chown(place, 65534, 65534)
  return True


def use_up_inodes(place):
  found = os.statvfs(place)
  options = f"remount,nr_inodes={found.f_files - found.f_ffree}"
  return run_as_root("mount", "-o", options, str(place))


def fill(place):
  with contextlib.suppress(OSError), (place / "other").open("wb") as file:
    while True:
      file.write(bytes(10_000))
      file.flush()
  return True


# What happens to the folder of checkpoints, how many processes train, and the
# reason that the line then gives.
UNWRITABLE = {
  "immutable": (make_immutable, 1, "Operation not permitted"),
  "read-only": (make_read_only, 1, "Read-only file system"),
  "of another user": (give_away, 1, "Permission denied"),
  "no inodes": (use_up_inodes, 1, "No space left on device"),
  "full": (fill, 1, "No space left on device"),
  "full for two": (fill, 2, "No space left on device"),
}


@pytest.fixture
def mounted(folder):
  """name -> a folder for a run whose checkpoints have a disk of their own."""
  if os.geteuid() != 0 or not shutil.which("setpriv"):
    pytest.skip("needs root, which mounts file systems, and setpriv")
  places = []

  def make(name):
    tmp = folder(name)
    places.append(tmp / "workdir" / "checkpoints")
    places[-1].mkdir(parents=True)
    options = ("-t", "tmpfs", "-o", "size=64m,mode=755")
    if not run_as_root("mount", *options, "tmpfs", str(places[-1])):
      pytest.skip("needs the right to mount file systems")
    return tmp

  yield make
  for place in places:
    run_as_root("chattr", "-i", str(place))
    run_as_root("umount", str(place))


def end_in(tmp, spoil, count):
  """Spoils the folder of a run: (seconds until its end, its processes)."""
  place = tmp / "workdir" / "checkpoints"
  # Without the right of root to write to all files.
  prefix = ("setpriv", "--bounding-set", "-dac_override")
  running = processes.start_saves(tmp / "workdir", count, 1_000_000, *prefix)
  processes.wait_until(
    lambda: reader.find_latest_step(str(tmp / "workdir")), running, seconds=300
  )
  # While a save is under way, a file system cannot be made read-only.
  processes.wait_until(lambda: spoil(place), running, poll_seconds=5e-3)
  start = time.monotonic()
  ended = processes.finish(running, timeout=60)
  return time.monotonic() - start, ended


def test_folder_that_cannot_be_written_ends_the_run_within_seconds(mounted):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = {
      name: pool.submit(end_in, mounted(name), spoil, count)
      for name, (spoil, count, _) in UNWRITABLE.items()
    }
  for name, (_, count, reason) in UNWRITABLE.items():
    seconds, (first, *others) = results[name].result()
    print(f"{name}: {seconds:.1f} s")
    assert "the checkpoint of step" in first.errors, (name, first)
    assert "cannot be written to" in first.errors, (name, first)
    assert reason in first.errors, (name, first)
    assert [one.code for one in (first, *others)] == [1] * count, name
    assert seconds < 15, (name, seconds)


def test_reports_that_cannot_be_written_stop_the_run(copied, made):
  report = copied / "workdir" / "metrics.jsonl"
  report.unlink()
  report.symlink_to("/dev/full")
  for step in ("6", "9"):
    shutil.rmtree(copied / "workdir" / "checkpoints" / step)
  line = run(copied, code=1).errors.strip()
  assert line == (
    f"error: the reports in '{copied}/workdir' cannot be written: No space "
    "left on device. Make room there or set --workdir; the same command "
    "resumes from the last checkpoint."
  )
  # The report of step 4 was due at step 6, which is saved.
  assert names(copied) == {"3", "6"}
  assert arrays(copied, 6) == arrays(made, 6)

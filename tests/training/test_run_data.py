"""The facts that a run keeps of its data set: written, read, damaged."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from alexnet_jax.data import statistics
from alexnet_jax.training import run_data

NAMES = ("tabby, tabby cat", "Brötchen", "crane", "crane")
IMAGE = np.random.default_rng(0).uniform(0, 255, (5, 5, 3)).astype(np.float32)


@pytest.fixture(params=[None, IMAGE], ids=["channels", "image"])
def written(request, tmp_path):
  """A workdir with facts, and the facts."""
  data = run_data.RunData(
    class_names=NAMES,
    statistics=dataclasses.replace(
      statistics.PUBLISHED, mean=(1 / 3, 2, 3.5), mean_image=request.param
    ),
  )
  run_data.write(str(tmp_path), data)
  return tmp_path, data


def find(data):
  return {"statistics": data.statistics.fingerprint()}


def test_facts_are_read_as_they_were_written(written):
  folder, data = written
  read = run_data.read(str(folder), find(data), num_classes=4)
  assert read.class_names == NAMES
  one, other = (
    dataclasses.replace(each.statistics, mean_image=None)
    for each in (read, data)
  )
  assert dataclasses.astuple(one) == dataclasses.astuple(other)
  image = data.statistics.mean_image
  if image is None:
    assert read.statistics.mean_image is None
  else:
    np.testing.assert_array_equal(read.statistics.mean_image, image)
  # Without a fingerprint in the config, as after an import.
  run_data.read(str(folder), {"statistics": None})
  names = {path.name for path in folder.iterdir()}
  assert names == {"data.json"} | (
    {"mean_image.npy"} if image is not None else set()
  )


def test_files_are_written_again_only_if_they_are_others(written):
  folder, data = written

  def find_files():
    return {path.name: path.stat().st_ino for path in folder.iterdir()}

  before = find_files()
  run_data.write(str(folder), data)
  assert find_files() == before
  for name in before:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    run_data.write(str(folder), data)
    assert run_data.read(str(folder), find(data)).class_names == NAMES
  other = dataclasses.replace(data, class_names=NAMES[::-1])
  run_data.write(str(folder), other)
  assert run_data.read(str(folder), find(data)).class_names == NAMES[::-1]


def read_refused(folder, kind, data, **options):
  with pytest.raises(kind) as caught:
    run_data.read(str(folder), find(data), **options)
  said = str(caught.value)
  assert "\n" not in said and str(folder) in said
  assert "Resume it once" in said or "resume the run once" in said
  return said


def test_run_of_an_earlier_version_is_told_to_resume(written):
  folder, data = written
  assert run_data.exists(str(folder))
  (folder / "data.json").unlink()
  assert not run_data.exists(str(folder))
  said = read_refused(folder, OSError, data)
  assert "there is no" in said and "earlier version" in said


def change(folder, values, *, rehash=True):
  """Changes fields; the checksum follows, as an attacker could do it."""
  file = folder / "data.json"
  fields = json.loads(file.read_text()) | values
  fields = {name: value for name, value in fields.items() if value is not ...}
  if rehash and "checksum" not in values:
    del fields["checksum"]
    text = json.dumps(fields, sort_keys=True).encode()
    fields["checksum"] = hashlib.blake2b(text, digest_size=16).hexdigest()
  file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ({"class_names": "abcd"}, "class_names is not a list of names"),
    ({"class_names": ["a", 1, "b", "c"]}, "class_names is not a list"),
    ({"mean": [1, 2]}, "mean is not three numbers"),
    ({"mean": [1, 2, True]}, "mean is not three numbers"),
    ({"stds": [1, 2, float("nan")]}, "stds is not three numbers"),
    ({"directions": [[1, 2, 3]]}, "directions is not three times three"),
    ({"mean_image": "../a.npy"}, "mean_image is not null or mean_image.npy"),
    ({"checksum": None}, "checksum is not a checksum"),
    ({"mean": ...}, "it lacks mean"),
    ({"more": 1}, "an unknown field 'more'"),
  ],
)
def test_field_of_another_kind_is_named(values, expected, written):
  folder, data = written
  change(folder, values)
  assert expected in read_refused(folder, ValueError, data)


def test_changed_value_is_found_by_the_checksum(written):
  folder, data = written
  change(folder, {"class_names": [*NAMES[:3], "heron"]}, rehash=False)
  assert "checksum is that of other" in read_refused(folder, ValueError, data)


def test_facts_of_another_run_are_refused(written):
  folder, data = written
  said = read_refused(folder, ValueError, data, num_classes=1000)
  assert "4 class names, but the network of the run has 1000 classes" in said
  other = dataclasses.replace(data.statistics, mean=(1.0, 2.0, 3.0))
  other = dataclasses.replace(data, statistics=other)
  assert "trained with" in read_refused(folder, ValueError, other)


def test_file_that_ends_early_is_refused_wherever_it_ends(written):
  folder, data = written
  for name, step in (("data.json", 50), ("mean_image.npy", 37)):
    file = folder / name
    if file.exists():
      contents = file.read_bytes()
      for size in range(0, len(contents), step):
        file.write_bytes(contents[:size])
        assert "is damaged" in read_refused(folder, ValueError, data)
      file.write_bytes(contents)
  run_data.read(str(folder), find(data))


@pytest.mark.parametrize("contents", [b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_file_that_is_no_fields_is_refused(contents, written):
  folder, data = written
  (folder / "data.json").write_bytes(contents)
  assert "is damaged" in read_refused(folder, ValueError, data)


def test_damaged_mean_image_is_refused(tmp_path):
  data = run_data.RunData(
    class_names=NAMES,
    statistics=dataclasses.replace(statistics.PUBLISHED, mean_image=IMAGE),
  )
  run_data.write(str(tmp_path), data)
  file = tmp_path / "mean_image.npy"
  for image, expected in (
    (IMAGE + 1, "not the mean image that data.json was written with"),
    (IMAGE.astype(np.float64), r"it is not f32[side, side, 3]"),
    (IMAGE[:, :4], r"it is not f32[side, side, 3]"),
    (np.array([print], object), "it is no array of numbers"),  # a pickle
  ):
    np.save(file, image, allow_pickle=True)
    assert expected in read_refused(tmp_path, ValueError, data)
  file.unlink()
  said = read_refused(tmp_path, FileNotFoundError, data)
  assert "mean_image.npy" in said


def test_workdir_that_cannot_be_written_is_named(tmp_path, written):
  _, data = written
  with pytest.raises(OSError, match="none' cannot be written: No such file"):
    run_data.write(str(tmp_path / "none"), data)

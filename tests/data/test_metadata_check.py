"""Nothing that is loaded runs code, and no name leads out of its folder."""

import ast
import io
import json
import os
import pathlib
import tarfile

import numpy as np
import pytest

from alexnet_jax.checkpoints import checksum, metadata, reader
from alexnet_jax.data import decode, metadata_check, sets, tars
from alexnet_jax.program import compilation_cache
from tests import processes, small_sets

FILES = sorted((processes.ROOT / "alexnet_jax").rglob("*.py"))
# What makes objects, or code, out of bytes.
MODULES = {
  *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib"),
  *("marshal", "shelve", "code", "runpy", "yaml"),
}
CALLS = {"eval", "exec", "compile", "__import__"}
# The one that a user names with --tracker.
IMPORTS_MODULES = ("tracker.py",)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_package_runs_no_code_that_it_reads(file):
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names = {alias.name.split(".")[0] for alias in node.names}
      assert not names & MODULES
    elif isinstance(node, ast.ImportFrom):
      assert (node.module or "").split(".")[0] not in MODULES
    if isinstance(node, ast.Call):
      # Not methods, as the `compile` of a lowered program.
      assert getattr(node.func, "id", None) not in CALLS
      imports = getattr(node.func, "attr", None) == "import_module"
      assert not imports or file.name in IMPORTS_MODULES
      given = {word.arg: word.value for word in node.keywords}
      assert "allow_pickle" not in given or not given["allow_pickle"].value


def features(folder: pathlib.Path, class_name: str) -> None:
  folder.mkdir(parents=True)
  feature = {"pythonClassName": class_name}
  nested = {"featuresDict": {"features": {"image": feature}}}
  (folder / "features.json").write_text(json.dumps(nested))


def test_set_whose_metadata_name_code_is_refused_before_it_runs(
  tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "evil.py").write_text("raise SystemExit('it has run')")
  features(tmp_path / "fine" / "1.0.0", "tensorflow_datasets.core.features.A")
  features(tmp_path / "mine" / "small" / "1.0.0", "evil.Feature")
  options = {"data_dir": str(tmp_path), "field": "config.data.name"}
  metadata_check.check_name("fine", **options)
  with pytest.raises(ValueError, match="features.json names 'evil.Feature'"):
    metadata_check.check_name("Mine/small:1.0.0", **options)
  with pytest.raises(ValueError, match="'evil.Feature'"):
    sets.open_builder("mine", data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("../x", "cannot be opened .* Set config.data.name"),
    ("x/../../y", "cannot be opened"),
    ("/etc/x", "cannot be opened"),
    ("", "cannot be opened"),
    ("huggingface:mnist", "namespace 'huggingface', .* fetches code"),
    ("kaggle:mnist/x", "namespace 'kaggle'"),
  ],
)
def test_name_of_a_set_is_neither_a_path_nor_code(name, expected, tmp_path):
  with pytest.raises(ValueError, match=expected):
    sets.open_builder(name, data_dir=str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_files_of_a_set_lie_in_its_folder(tmp_path):
  def check(*paths):
    paths = [str(tmp_path / path) for path in paths]
    metadata_check.check_inside(
      paths, str(tmp_path / "set"), what="digits/train"
    )

  check("set/a", "set/b/c")
  for outside in ("set/../a", "set2/a", "set"):
    with pytest.raises(ValueError, match="digits/train .* not in"):
      check("set/a", "set/b/c", outside)


def test_tar_is_listed_by_the_last_part_of_names_and_never_unpacked(tmp_path):
  path = tmp_path / tars.TARS["validation"]
  with tarfile.open(path, "w") as tar:
    header = tarfile.TarInfo("../../ILSVRC2012_val_00000007.JPEG")
    header.size = 3
    tar.addfile(header, io.BytesIO(b"abc"))
  (part,) = tars.find_sections("validation", str(path))
  ((member,), skipped) = tars.list_members(part)
  assert skipped == 0
  assert member.name == "ILSVRC2012_val_00000007.JPEG"
  found = tars.Tars(folder=str(tmp_path), class_names=(), subset=True)
  with found.open("") as read:
    assert read(member) == b"abc"
  with tarfile.open(path, "w") as tar:
    tar.addfile(tarfile.TarInfo("../../x"))
  with pytest.raises(ValueError, match="holds '../../x', expected pictures"):
    tars.list_members(tars.find_sections("validation", str(path))[0])
  assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_picture_that_would_start_a_program_is_no_picture():
  pixels = np.zeros((8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match="it is none of BMP, GIF, JPEG"):
    decode.decode(small_sets.encode(pixels, "EPS"), pixels)


def test_cache_that_everybody_may_write_to_is_not_used(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = tmp_path / "alexnet_jax"
  folder.mkdir()
  folder.chmod(0o777)
  before = compilation_cache.jax.config.jax_compilation_cache_dir
  with pytest.raises(OSError, match="everybody may write there.*chmod o-w"):
    compilation_cache.open_cache(str(folder))
  cache = compilation_cache.open_cache(None)
  assert cache.path is None and "everybody may write there" in cache.reason
  # Nor one of another user or group: here it is this process that is another.
  found = folder.stat()
  folder.chmod(0o770)
  with monkeypatch.context() as other:
    other.setattr(os, "getgid", lambda: found.st_gid + 1)
    with pytest.raises(OSError, match=f"group {found.st_gid} may .*chmod g-w"):
      compilation_cache.open_cache(str(folder))
  folder.chmod(0o700)
  with monkeypatch.context() as other:
    if found.st_uid == 0:  # who is trusted, and can give it away
      os.chown(folder, 65534, -1)
    else:
      other.setattr(os, "getuid", lambda: found.st_uid + 1)
    with pytest.raises(
      OSError, match="its owner, user .* may .*folder of yours"
    ):
      compilation_cache.open_cache(str(folder))
  made = compilation_cache.open_cache(str(tmp_path / "made"))
  assert os.stat(made.path).st_mode & 0o777 == 0o700
  compilation_cache._use(before)


def test_names_in_a_checkpoint_are_no_paths(tmp_path):
  folder = tmp_path / "run" / "checkpoints" / "3"
  folder.parent.mkdir(parents=True)
  like = reader.step_lib.TrainState(
    step=np.ones((), np.float32),
    is_finite=np.ones((), bool),
    parameters={},
    optimizer=(),
    statistics={},
  )
  arrays = {"step": like.step, "is_finite": like.is_finite}
  record = metadata.make(3, {}, {}, checksum.compute(like), code={})
  arrays["../../../evil"] = np.ones(2)
  reader.ocp.save(folder, arrays, custom_metadata=record)
  before = set(tmp_path.rglob("*"))
  with pytest.raises(metadata.CheckpointError, match="cannot be read"):
    reader.load(str(tmp_path / "run"), 3, like)
  assert set(tmp_path.rglob("*")) == before
  assert not [*tmp_path.parent.glob("evil*"), *tmp_path.glob("evil*")]

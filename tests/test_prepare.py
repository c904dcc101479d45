"""A small ImageNet, and own pictures: checked, prepared, interrupted."""

import functools
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import tarfile
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import ExifTags, Image, ImageOps

from alexnet_jax.data import (
  ilsvrc,
  imagenet256,
  origin,
  preparation,
  recognition,
  sets,
  shards,
  statistics,
)
from alexnet_jax.data import tars as tars_lib
from alexnet_jax.prepare import __main__ as prepare  # noqa: F401  its flags
from tests import own_pictures, processes, small_ilsvrc

FILES = 4 * small_ilsvrc.TRAINING + 2


def start(tars, data_dir, *flags, **options):
  return processes.open_process(
    [
      *("python", "-m", "alexnet_jax.prepare", "--jobs=2"),
      *(f"--from={tars}", f"--data_dir={data_dir}", *flags),
    ],
    data_dir,
    **options,
  )


def run(tars, data_dir, *flags, **options):
  return processes.finish([start(tars, data_dir, *flags, **options)])[0]


SMALL = ("--subset", "--shard_images=50", "--unreadable=leave_out")
in_both_encodings = pytest.mark.parametrize("encoding", ["jpeg", "raw"])


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tars")
  small_ilsvrc.write(folder)
  return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  # As markup of rich, and as a pattern of files.
  folder = tmp_path_factory.mktemp("data") / "sätze [v1] :x: #2" / "a[" / "b]"
  folder.mkdir(parents=True)
  return folder


@pytest.fixture(scope="module")
def said(tars, data_dir, tmp_path_factory):
  """How the command ended, {encoding: process}."""
  # They would be found, and asking for one would end the process.
  trap = tmp_path_factory.mktemp("trap")
  for name in ("tensorflow", "jax", "flax"):
    (trap / f"{name}.py").write_text(f"raise SystemExit('{name} asked')")
  variables = {"PYTHONPATH": str(trap)}
  return {
    encoding: run(
      *(tars, data_dir, *SMALL, f"--encoding={encoding}"),
      variables=variables,
    )
    for encoding in ("jpeg", "raw")
  }


def open_set(data_dir, encoding):
  return sets.open_builder(f"imagenet256/{encoding}", data_dir=str(data_dir))


@functools.cache
def open_split(data_dir, encoding, split):
  builder = open_set(data_dir, encoding)
  sets.check_classes(builder, 1000)
  return list(builder.as_data_source(split=split))


@in_both_encodings
def test_command_prepares_and_reports_odd_files(encoding, said, data_dir):
  code, out, errors = said[encoding]
  assert (code, errors) == (0, ""), errors
  for line in (
    f"1 file CMYK, converted to RGB: {small_ilsvrc.CMYK}",
    f"1 file not a JPEG in spite of its name: {small_ilsvrc.PNG}",
    f"1 file gray, stored as RGB: {small_ilsvrc.GRAY}",
    f"1 file unreadable, left out: {small_ilsvrc.TRUNCATED}",
    f"complete in {data_dir}/imagenet256/{encoding}/1.0.0: "
    f"{FILES - 1} in train, {small_ilsvrc.VALIDATION} in validation",
  ):
    assert line in out
  assert not list(data_dir.rglob("*.unfinished"))
  records = open_split(data_dir, encoding, "train")
  assert len({record["file_name"] for record in records}) == FILES - 1
  assert len(records) == FILES - 1
  for record in records + open_split(data_dir, encoding, "validation"):
    wordnet_id, _, number = record["file_name"].decode().partition("_")
    if wordnet_id == "ILSVRC2012":
      wordnet_id = ilsvrc.validation_labels()[int(number[-13:-5]) - 1]
    assert record["label"] == ilsvrc.class_names().index(wordnet_id)


def as_pillow_has_it(encoded, side=256, rotate=False):
  """Shorter side to `side`, and the central square, in Pillow's own words."""
  picture = Image.open(io.BytesIO(encoded))
  if rotate:
    picture = ImageOps.exif_transpose(picture)
  picture = picture.convert("RGB")
  width, height = (
    round(size * side / min(picture.size)) for size in picture.size
  )
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - side) // 2, (height - side) // 2
  return np.asarray(picture.crop((left, top, left + side, top + side)))


@in_both_encodings
def test_prepared_pixels_are_those_of_pillow(encoding, said, tars, data_dir):
  files = small_ilsvrc.read(tars)
  noted = Image.open(io.BytesIO(files[small_ilsvrc.ROTATED])).getexif()
  assert noted[ExifTags.Base.Orientation] == 6
  ten = [small_ilsvrc.CMYK, small_ilsvrc.PNG, small_ilsvrc.GRAY]
  ten += [f"n01440764_{number}.JPEG" for number in range(10, 17)]
  found = {
    record["file_name"].decode(): record["image"]
    for record in open_split(data_dir, encoding, "train")
  }
  for name in ten:
    expected = as_pillow_has_it(files[name])
    if encoding == "raw":
      np.testing.assert_array_equal(found[name], expected)
    else:
      # Quality 95 with colors at half the resolution: a few gray levels.
      error = found[name].astype(int) - expected
      assert np.sqrt(np.mean(error**2)) < 8
      assert np.abs(error.mean()) < 0.5


@in_both_encodings
def test_statistics_are_those_of_numpy(encoding, said, data_dir):
  records = open_split(data_dir, encoding, "train")
  images = np.stack([record["image"] for record in records]).astype(np.float64)
  found = sets.find_statistics(open_set(data_dir, encoding))
  # Stored to a thousandth of a gray level.
  np.testing.assert_allclose(found.mean_image, images.mean(axis=0), atol=6e-4)
  np.testing.assert_allclose(found.mean, images.mean(axis=(0, 1, 2)))
  covariance = np.cov(images.reshape(-1, 3), rowvar=False, bias=True)
  variances, vectors = np.linalg.eigh(covariance)
  np.testing.assert_allclose(np.square(found.stds), variances[::-1], rtol=1e-9)
  for direction, vector in zip(found.directions, vectors.T[::-1], strict=True):
    assert abs(np.dot(direction, vector)) == pytest.approx(1, abs=1e-12)
    assert max(direction, key=abs) > 0


def test_sums_of_parts_are_those_of_the_whole():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
  whole, first, second = (statistics.PixelSums.zeros(8) for _ in range(3))
  for number, image in enumerate(images):
    whole.add(image)
    (first if number < 2 else second).add(image)
  first.merge(second)
  expected, found = whole.to_statistics(), first.to_statistics()
  np.testing.assert_array_equal(found.mean_image, expected.mean_image)
  assert found.directions == expected.directions
  metadata = json.dumps(statistics.to_metadata(found))
  read = statistics.from_metadata(json.loads(metadata))
  assert read.stds == expected.stds
  np.testing.assert_allclose(read.mean_image, expected.mean_image, atol=6e-4)


@pytest.mark.slow
def test_network_trains_on_it_on_two_devices(said, data_dir, tmp_path):
  command = [
    *("python", "-m", "alexnet_jax.main"),
    "--config=configs/two_device.py:imagenet",
    *(f"--data_dir={data_dir}", f"--workdir={tmp_path}"),
    *("--config.data.name=imagenet256/jpeg", "--config.batch_size=16"),
    *("--config.num_epochs=0.15", "--config.log_every_steps=1"),
    *("--config.augment.mean_from=image", "--config.network.width=0.125"),
  ]
  ended = processes.run(command, tmp_path)
  assert ended.code == 0, ended.errors
  assert "the traced step has the 7 exchanges of the plan" in ended.out
  lines = processes.read_reports(tmp_path)
  assert lines[-1]["validation_images"] == small_ilsvrc.VALIDATION
  # The initial network gives every class about the same: ln 1000 is 6.91.
  assert abs(lines[0]["training_loss"] - np.log(1000)) < 0.7


def content(folder):
  return {
    path.name: path.read_bytes()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


def test_interrupt_while_processes_start_is_not_lost():
  class Interrupted(list):
    def __iter__(self):
      os.kill(os.getpid(), signal.SIGINT)
      return super().__iter__()

  with pytest.raises(KeyboardInterrupt):
    shards.write_all(Interrupted(), jobs=2, report=print)
  assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# Many shards, so that most are left when the first is there.
MANY = (*SMALL, "--shard_images=2")


@pytest.fixture(scope="module")
def straight(tars, tmp_path_factory):
  """A folder with the set of many shards, from a run that nothing stopped."""
  made = tmp_path_factory.mktemp("straight")
  assert run(tars, made, *MANY).code == 0
  return made


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_started_again_ends_with_the_same_data(
  number, tars, straight, tmp_path
):
  parts = tmp_path / "imagenet256" / "jpeg" / "1.0.0.unfinished" / "set"
  process = start(tars, tmp_path, *MANY)
  processes.wait_until(
    lambda: [*parts.glob("*-of-*[0-9]")], [process], poll_seconds=0.005
  )
  process.send_signal(number)
  ((code, _, complaint),) = processes.finish([process])
  assert code != 0
  if number == signal.SIGINT:
    assert complaint.startswith("interrupted; the same command resumes")
    assert len(complaint.splitlines()) == 1
  final = parts.parents[1] / "1.0.0"
  assert not final.exists()
  with pytest.raises(FileNotFoundError, match="not completely prepared"):
    sets.open_builder("imagenet256", data_dir=str(tmp_path))

  kept = {path: path.stat().st_mtime_ns for path in parts.glob("*-of-*[0-9]")}
  assert kept
  assert run(tars, tmp_path, *MANY).code == 0
  for path, written in kept.items():
    assert (final / path.name).stat().st_mtime_ns == written  # not redone
  # Every file, every byte.
  assert content(final) == content(straight / final.relative_to(tmp_path))
  assert not parts.parent.exists()


def make_builder(data_dir, encoding="raw"):
  return imagenet256.Imagenet256(
    data_dir=str(data_dir), config=encoding, file_format="array_record"
  )


def make_plan(tars, data_dir, *, encoding="jpeg", **options):
  options = {"subset": True, "leave_out": False, "log": print} | options
  found = recognition.find_origin(
    str(tars), subset=options["subset"], validation=None
  )
  return preparation.make_plan(
    make_builder(data_dir, encoding),
    found,
    shard_images=50,
    **options,
  )


def damage(tars, kind):
  """Damages the tars; "header" is that of the second class's second picture."""
  train, validation = (tars / name for name in tars_lib.TARS.values())
  stored = bytearray(train.read_bytes())
  with tarfile.open(train) as outer:
    second = outer.getmembers()[1]
    with tarfile.open(fileobj=outer.extractfile(second)) as inner:
      header = second.offset_data + inner.getmembers()[1].offset
  page = b"<html>please log in</html>"
  if kind == "missing":
    validation.unlink()
  elif kind == "swapped":
    train.write_bytes(validation.read_bytes())
    validation.write_bytes(stored)
  elif kind == "cut short":
    os.truncate(train, len(stored) * 2 // 3)
  elif kind == "header":
    stored[header : header + 7] = b"damaged"
    train.write_bytes(stored)
  elif kind == "class":
    stored[second.offset_data : second.offset_data + 512] = page.ljust(512)
    train.write_bytes(stored)
  elif kind == "no tar":
    train.write_bytes(page * 100)
  elif kind == "empty":
    validation.write_bytes(bytes(10240))


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("missing", "there is no .*ILSVRC2012_img_val.tar.*set --from"),
    ("other size", "expected 147,897,477,120: .*set --subset"),
    ("swapped", "img_train.tar holds 'ILSVRC2012_val_.*expected one tar for"),
    ("cut short", "img_train.tar is not a complete tar file"),
    ("header", "img_train.tar is not a complete tar file .damaged or cut"),
    ("class", "img_train.tar is not a complete tar file .damaged or cut"),
    ("no tar", "img_train.tar is not a complete tar file"),
    ("empty", "img_val.tar holds no pictures"),
  ],
)
def test_wrong_tars_are_refused_before_a_write(kind, message, tars, tmp_path):
  copied = shutil.copytree(tars, tmp_path / "tars")
  damage(copied, kind)
  with pytest.raises((ValueError, OSError), match=message):
    make_plan(copied, tmp_path / "data", subset=kind != "other size")
  assert not (tmp_path / "data").exists()


def write_class_tar(folder, *entries):
  """Writes a class's tar of (name, kind, target of a link); lists its files."""
  path = folder / "n01440764.tar"
  with tarfile.open(path, "w") as tar:
    for name, kind, target in entries:
      header = tarfile.TarInfo(name)
      header.type, header.linkname = kind, target
      content = name.encode() if kind == tarfile.REGTYPE else b""
      header.size = len(content)
      tar.addfile(header, io.BytesIO(content))
  section = tars_lib.TarSection(
    "train", str(path), "n01440764", 0, path.stat().st_size
  )
  members, _ = tars_lib.list_members(section)
  found = tars_lib.Tars(folder=str(folder), class_names=(), subset=True)
  with found.open("") as read:
    return {member.name: read(member) for member in members}


def test_links_in_a_tar_are_read(tmp_path):
  one, two, three, four = (f"n01440764_{number}.JPEG" for number in range(4))
  found = write_class_tar(
    tmp_path,
    ("pictures", tarfile.DIRTYPE, ""),
    (f"pictures/{three}", tarfile.SYMTYPE, f"./{two}"),
    (f"pictures/{one}", tarfile.REGTYPE, ""),
    (f"pictures/{two}", tarfile.LNKTYPE, f"pictures/{one}"),
    (four, tarfile.SYMTYPE, f"pictures/{three}"),
  )
  picture = f"pictures/{one}".encode()
  assert found == dict.fromkeys((one, two, three, four), picture)


@pytest.mark.parametrize(
  ("kind", "target", "message"),
  [
    (tarfile.FIFOTYPE, "", "_1.JPEG', which is no ordinary file"),
    (tarfile.CHRTYPE, "", "_1.JPEG', which is no ordinary file"),
    (tarfile.SYMTYPE, "/tmp/x", "_1.JPEG', a link to '/tmp/x', which is no"),
    (tarfile.LNKTYPE, "gone.JPEG", "_1.JPEG', a link to 'gone.JPEG', which"),
    (tarfile.SYMTYPE, "n01440764_1.JPEG", "a link to 'n01440764_1.JPEG'"),
  ],
)
def test_entry_without_a_picture_is_named(kind, target, message, tmp_path):
  entries = (
    ("n01440764_0.JPEG", tarfile.REGTYPE, ""),
    (
      "n01440764_1.JPEG",
      kind,
      target,
    ),
  )
  with pytest.raises(ValueError, match=message):
    write_class_tar(tmp_path, *entries)


def test_tar_modified_between_two_starts_is_named(tars, tmp_path):
  copied = shutil.copytree(tars, tmp_path / "tars")
  plan = make_plan(copied, tmp_path / "data")
  os.makedirs(plan.folder)
  origin.save_listing(plan.folder, plan.made_from, plan.listing)
  lines = []
  make_plan(copied, tmp_path / "data", log=lines.append)
  assert lines == []
  train = copied / tars_lib.TARS["train"]
  middle = plan.listing.files["train"][FILES // 2].offset
  with open(train, "r+b") as file:
    file.seek(middle)
    file.write(b"altered")
  make_plan(copied, tmp_path / "data", log=lines.append)
  assert [line.partition(" after")[0] for line in lines] == [
    f"{train} was modified"
  ]


def test_sums_take_one_thread():
  sums = statistics.PixelSums.zeros(256)
  image = np.full((256, 256, 3), 255, np.uint8)
  all_threads, this_thread = time.process_time(), time.thread_time()
  for _ in range(50):
    sums.add(image)
  all_threads = time.process_time() - all_threads
  this_thread = time.thread_time() - this_thread
  assert all_threads < 1.5 * this_thread
  assert (sums.products == 50 * 256 * 256 * 255**2).all()


def test_too_little_disk_is_refused_before_a_write(tars, tmp_path, monkeypatch):
  plan = make_plan(tars, tmp_path / "data", encoding="raw")
  pixels = (FILES + small_ilsvrc.VALIDATION) * 256 * 256 * 3
  assert 1.05 * pixels < plan.needed_bytes < 1.4 * pixels
  usage = shutil.disk_usage(tmp_path)._replace(free=pixels)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(
    OSError, match=f"has {pixels / 1e6:.0f} MB free, expected at least"
  ):
    make_plan(tars, tmp_path / "data", encoding="raw")
  assert not (tmp_path / "data").exists()


def test_full_disk_in_mid_run_leaves_no_file_named_as_a_shard(tars, tmp_path):
  plan = make_plan(tars, tmp_path, encoding="raw")
  shard = plan.shards["validation"][0]
  make_folders(shard)
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # five records
  try:
    message = "cannot be written .*keeps finished shards"
    with pytest.raises(OSError, match=message):
      shards.write(shard)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    signal.signal(signal.SIGXFSZ, before)
  assert not shard.is_done() and not os.path.exists(shard.path)
  shards.write(shard)
  assert shard.read_notes().records == small_ilsvrc.VALIDATION


def make_folders(shard):
  for path in (shard.path, shard.notes):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)


def write_shard_with(name, tars, data_dir):
  """Writes the shard that has a file, and leaves unreadable ones out."""
  train = make_plan(tars, data_dir, leave_out=True).shards["train"]
  (shard,) = [
    shard
    for shard in train
    if name in [member.name for member in shard.members]
  ]
  make_folders(shard)
  shards.write(shard)
  assert shard.is_done()
  return shard


def test_shard_that_lacks_files_is_not_done_without_leave_out(tars, tmp_path):
  shard = write_shard_with(small_ilsvrc.TRUNCATED, tars, tmp_path)
  plan = make_plan(tars, tmp_path)
  (same,) = [other for other in plan.remaining if other.path == shard.path]
  assert not same.is_done()


def test_builder_prepares_itself_from_whole_tars(tmp_path, monkeypatch):
  small_ilsvrc.write(tmp_path, truncated=False)
  sizes = {
    split: os.path.getsize(tmp_path / name)
    for split, name in tars_lib.TARS.items()
  }
  images = {"train": FILES, "validation": small_ilsvrc.VALIDATION}
  monkeypatch.setattr(tars_lib, "BYTES", sizes)
  monkeypatch.setattr(ilsvrc, "IMAGES", images)
  config = tfds.download.DownloadConfig(manual_dir=tmp_path)
  data_dir = tmp_path / "data"
  make_builder(data_dir).download_and_prepare(download_config=config)
  found = open_set(data_dir, "raw")
  for split, count in images.items():
    assert found.info.splits[split].num_examples == count
  monkeypatch.setattr(ilsvrc, "IMAGES", images | {"train": FILES + 1})
  other = make_builder(tmp_path / "other")
  with pytest.raises(
    ValueError, match=f"holds {FILES} pictures, expected {FILES + 1}: it"
  ):
    other.download_and_prepare(download_config=config)


def test_complete_set_is_not_touched(said, tars, data_dir):
  (folder,) = data_dir.glob("imagenet256/jpeg/*")
  left = folder.with_name(folder.name + preparation.UNFINISHED)
  left.mkdir()  # as by a kill between the last two steps
  before = content(folder)
  ended = run(tars, data_dir, *SMALL)
  assert ended.code == 0
  assert f"1.0.0 is complete already, in {folder}; delete that" in ended.out
  assert content(folder) == before
  assert not left.exists()


def test_folder_in_the_place_of_the_set_is_not_touched(tars, tmp_path):
  folder = tmp_path / "imagenet256" / "jpeg" / "1.0.0"
  folder.mkdir(parents=True)
  (folder / "mine").touch()
  with pytest.raises(FileExistsError, match="not from this preparation"):
    make_plan(tars, tmp_path)
  assert [path.name for path in folder.iterdir()] == ["mine"]


@pytest.mark.slow
def test_processes_that_write_shards_do_not_import_the_command(tmp_path):
  own_pictures.write(tmp_path / "pictures", count=4)
  code, _, imports = run(
    *(tmp_path / "pictures", tmp_path / "data", "--validation=0.5"),
    "--shard_images=4",
    variables={"PYTHONPROFILEIMPORTTIME": "1"},
  )
  assert code == 0
  found = [line.rpartition("|")[2].strip() for line in imports.splitlines()]
  assert found.count("alexnet_jax.data.shards") == 3
  assert found.count("alexnet_jax.cli.command") == 1


@pytest.mark.slow
def test_unreadable_file_stops_and_what_is_finished_is_kept(tars, tmp_path):
  copied = shutil.copytree(tars, tmp_path / "tars")
  ended = run(copied, tmp_path, "--subset", "--shard_images=50")
  assert ended.code == 1
  (line,) = ended.errors.splitlines()
  assert line.startswith(f"error: {small_ilsvrc.TRUNCATED} in ")
  assert "set --unreadable=leave_out" in line
  assert not (tmp_path / "imagenet256" / "jpeg" / "1.0.0").exists()
  plan = make_plan(copied, tmp_path)
  assert 0 < len(plan.remaining) < 6
  # Only with the same tars, though.
  small_ilsvrc.write(copied, truncated=False)
  with pytest.raises(ValueError, match="started with other inputs .ILSVRC"):
    make_plan(copied, tmp_path)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cifar10", "with TensorFlow: `pip install tensorflow && tfds build cif"),
    ("digits", "needs no preparation"),
    ("imagenet256", "--size is 64, but imagenet256 has squares of 256"),
    ("Mine", "--name is 'Mine', expected a letter"),
    ("../mine", "--name is '../mine', expected a letter"),
    ("mine/raw", "--name is 'mine/raw', expected a letter"),
  ],
)
def test_set_that_cannot_be_prepared_is_refused(name, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    sets.make_to_prepare(
      *(name,),
      data_dir=str(tmp_path),
      encoding="jpeg",
      side=64,
      class_names="a",
    )


OWN = ("--validation=0.2", "--size=96", "--unreadable=leave_out")
# What is prepared in each way -> how it is written from the tars.
ORIGINS = {
  "tars": shutil.copytree,
  "folders": small_ilsvrc.write_folders,
  "kaggle": small_ilsvrc.write_kaggle,
  "parquet": small_ilsvrc.write_parquet,
  "own": lambda tars, folder: own_pictures.write(folder, damaged=True),
}


@pytest.fixture(scope="module")
def origins(tars, tmp_path_factory):
  """{kind: the folder with pictures of that kind}."""
  made = {}
  for kind, write in ORIGINS.items():
    made[kind] = tmp_path_factory.mktemp("origins") / f"{kind} #1 [ä]"
    write(tars, made[kind])
  return made


def prepare_own(folder, data_dir, **options):
  """Prepares own pictures in this process; returns its builder."""
  found = recognition.find_origin(str(folder), subset=False, validation=0.2)
  builder = sets.make_to_prepare(
    *("mine",), data_dir=str(data_dir), class_names=found.class_names, **options
  )
  plan = preparation.make_plan(
    *(builder, found), subset=False, leave_out=True, shard_images=20, log=print
  )
  reported = []
  preparation.execute(plan, jobs=1, report=reported.append)
  # After each file, also after one that is left out.
  files = sum(map(len, plan.listing.files.values()))
  assert reported == [*range(1, files + 1)]
  return builder


@in_both_encodings
def test_own_pictures_make_a_set_that_tfds_opens_by_name(encoding, tmp_path):
  own_pictures.write(tmp_path / "there", count=6, damaged=True)
  with pytest.raises(ValueError, match="among the pictures.*Set --data_dir"):
    prepare_own(
      *(tmp_path / "there", tmp_path / "there" / "data"),
      encoding="raw",
      side=12,
    )
  prepare_own(tmp_path / "there", tmp_path, encoding=encoding, side=12)
  by_tfds = tfds.builder("mine", data_dir=str(tmp_path))
  builder = sets.open_builder("mine", data_dir=str(tmp_path))
  sets.check_classes(builder, 5)
  assert sets.find_class_names(builder) == own_pictures.CLASSES
  found = {}
  for split in ("train", "validation"):
    for record in by_tfds.as_data_source(split=split):
      found[record["file_name"].decode()] = record
  assert len(found) == 30
  errors, turned = [], 0
  for name, record in found.items():
    assert own_pictures.CLASSES[record["label"]] == name.split("/")[0]
    encoded = (tmp_path / "there" / name).read_bytes()
    picture = as_pillow_has_it(encoded, side=12, rotate=True)
    turned += (picture != as_pillow_has_it(encoded, side=12)).any()
    errors.append(record["image"].astype(int) - picture)
  assert turned == 3  # BMP and GIF have no such note; Pillow turns TIFF itself
  # Nothing is lost, or what a JPEG loses: a few gray levels.
  assert np.sqrt(np.mean(np.square(errors))) < (
    9 if encoding == "jpeg" else 1e-9
  )
  images = np.stack(
    [record["image"] for record in by_tfds.as_data_source(split="train")]
  )
  np.testing.assert_allclose(
    sets.find_statistics(builder).mean, images.mean(axis=(0, 1, 2))
  )
  listed = pathlib.Path(builder.data_dir, preparation.LEFT_OUT).read_text()
  lines = listed.splitlines()
  assert len(lines) == len(own_pictures.DAMAGED)
  for name, reason in own_pictures.DAMAGED.items():
    start = f"{tmp_path / 'there' / name}: {reason}"
    assert [line for line in lines if line.startswith(start)]
  # Another set cannot take its name.
  same = {
    "data_dir": str(tmp_path),
    "encoding": encoding,
    "side": 12,
    "class_names": own_pictures.CLASSES,
  }
  sets.check_prepared(sets.make_to_prepare("mine", **same))
  for other, message in (
    ({"encoding": {"jpeg": "raw", "raw": "jpeg"}[encoding]}, "--encoding"),
    ({"side": 13}, "--size 12 there, 13 here. Set --name"),
    ({"class_names": own_pictures.CLASSES[:4]}, "number of classes 5 there, 4"),
    (
      {"class_names": (*own_pictures.CLASSES[:4], "neu")},
      "class 'ñandú' there, 'neu' here",
    ),
  ):
    builder = sets.make_to_prepare("mine", **same | other)
    with pytest.raises(ValueError, match=message):
      sets.check_prepared(builder)


def test_set_that_is_not_complete_is_no_unknown_one(tmp_path):
  with pytest.raises(ValueError, match=f"is not in {tmp_path}, .*--data_dir"):
    sets.open_builder("mine", data_dir=str(tmp_path))
  (tmp_path / "mine" / f"1.0.0{preparation.UNFINISHED}").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match="is not completely prepared"):
    sets.open_builder("mine", data_dir=str(tmp_path))


def find_content(data_dir):
  """The files of a set, by name, without the paths of its pictures."""
  files = content(data_dir)
  files.pop(preparation.LEFT_OUT)
  return files


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folders", "kaggle", "parquet"])
def test_imagenet_has_the_same_bytes_from_every_origin(
  kind, origins, said, data_dir, tmp_path
):
  ended = run(origins[kind], tmp_path, *SMALL)
  assert ended.code == 0, ended.errors
  folder = pathlib.Path("imagenet256", "jpeg", "1.0.0")
  assert find_content(tmp_path / folder) == find_content(data_dir / folder)
  *_, last = ended.out.splitlines()
  assert last == (
    "the files that were left out are listed in "
    f"{tmp_path / folder / preparation.LEFT_OUT}"
  )


@pytest.mark.slow
def test_own_pictures_are_prepared_trained_and_evaluated(origins, tmp_path):
  config = tmp_path / "pics.py"
  flags = (*OWN, "--name=mine", f"--write={config}")
  refused = run(origins["own"], tmp_path, *flags[:2])
  assert refused.code == 1 and len(refused.errors.splitlines()) == 1
  assert "--unreadable=leave_out" in refused.errors
  ended = run(origins["own"], tmp_path, *flags)
  assert ended.code == 0, ended.errors
  for line in (
    f"found 5 folders of classes in {origins['own']}/, 0.2 of their pictures",
    "  config.data.name = 'mine'",
    "  config.network.num_classes = 5",
    f"wrote {config}",
  ):
    assert line in ended.out
  assert "PIL" not in ended.errors and "Warning" not in ended.errors
  again = run(origins["own"], tmp_path, *flags)
  assert "mine/1.0.0 is complete already" in again.out
  assert f"wrote {config}" in again.out
  command = [
    *("python", "-m", "alexnet_jax.main", f"--config={config}"),
    *(f"--data_dir={tmp_path}", f"--workdir={tmp_path}/run"),
    *("--config.batch_size=16", "--config.num_epochs=1"),
    "--config.network.width=0.125",
  ]
  ended = processes.run(command, tmp_path)
  assert ended.code == 0, ended.errors
  command = [
    "python",
    "-m",
    "alexnet_jax.evaluate",
    f"--workdir={tmp_path}/run",
  ]
  ended = processes.run([*command, f"--data_dir={tmp_path}"], tmp_path)
  assert ended.code == 0, ended.errors
  # Its table has the classes with errors.
  assert any(name in ended.out for name in own_pictures.CLASSES)


# Of each form, in half a minute.
KILLS = 4


@pytest.mark.faults
@pytest.mark.parametrize("kind", ORIGINS)
def test_killed_at_random_moments_ends_with_the_same_bytes(
  kind, origins, tmp_path
):
  flags = (
    (*OWN, "--name=mine", "--shard_images=4", "--jobs=1")
    if kind == "own"
    else (*SMALL, "--shard_images=8", "--jobs=1")
  )
  straight = tmp_path / "straight"
  straight.mkdir()
  began = time.monotonic()
  assert run(origins[kind], straight, *flags).code == 0
  seconds = time.monotonic() - began
  rng = np.random.default_rng(len(kind))
  kills, resumed, finished = 0, 0, 0
  while kills < KILLS:
    folder = tmp_path / f"killed {finished}"
    folder.mkdir(exist_ok=True)
    resumed += any(folder.glob("**/*-of-*[0-9]"))
    process = start(origins[kind], folder, *flags)
    time.sleep(rng.uniform(0.4, 1.0) * seconds)
    process.kill()
    ((code, *_),) = processes.finish([process])
    if code == 0:  # it was faster
      assert content(folder) == content(straight)
      finished += 1
      seconds *= 0.9
    else:
      kills += 1
  assert run(origins[kind], folder, *flags).code == 0
  assert content(folder) == content(straight)
  assert not [*folder.rglob("*.unfinished")]
  assert resumed  # some kills came after the first shards

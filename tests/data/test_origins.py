"""Where pictures come from: recognized, listed, read; small and not decoded."""

import gzip
import io
import os
import pathlib
import shutil
import sys
import tarfile

import numpy as np
import pytest

from alexnet_jax.data import (
  ilsvrc,
  origin,
  own_set,
  parquet,
  recognition,
  sets,
  shards,
  tars,
)
from tests import own_pictures, small_ilsvrc, small_sets

WRITERS = {
  "folders": small_ilsvrc.write_folders,
  "kaggle": small_ilsvrc.write_kaggle,
  "parquet": small_ilsvrc.write_parquet,
}


@pytest.fixture(scope="module")
def ilsvrc_tars(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tars")
  small_ilsvrc.write(folder)
  return folder


def find(folder, **options):
  options = {"subset": True, "validation": None} | options
  return recognition.find_origin(str(folder), **options)


def list_official(folder):
  """Finds and lists the small ILSVRC as `make_plan` does."""
  found = find(folder)
  return found, recognition.list_files(
    found, ilsvrc.class_names(), is_imagenet=True, subset=True
  )


def read_all(found, listing):
  """{split: [(name, label, content)]} in the order of the records."""
  with found.open("") as read:
    return {
      split: [(member.name, member.label, read(member)) for member in members]
      for split, members in listing.files.items()
    }


@pytest.fixture(scope="module")
def expected(ilsvrc_tars):
  return read_all(*list_official(ilsvrc_tars))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_form_of_imagenet_has_the_same_files_in_the_same_order(
  kind, ilsvrc_tars, expected, tmp_path
):
  WRITERS[kind](ilsvrc_tars, tmp_path / "there")
  assert read_all(*list_official(tmp_path / "there")) == expected
  assert len(expected["train"]) == 4 * small_ilsvrc.TRAINING + 2
  names = [name for name, *_ in expected["train"]]
  assert names != sorted(names) and len(set(names)) == len(names)


def test_kaggle_without_its_csv_is_labeled_by_the_names_of_the_files(
  ilsvrc_tars, expected, tmp_path
):
  small_ilsvrc.write_kaggle(ilsvrc_tars, tmp_path / "there")
  solution = tmp_path / "there" / "LOC_val_solution.csv"
  solution.unlink()
  found, listing = list_official(tmp_path / "there" / "ILSVRC")
  assert "with classes from the names of its files" in found.describe()
  assert read_all(found, listing) == expected
  # A file that says something else is not believed.
  solution.write_text(
    "ImageId,PredictionString\nILSVRC2012_val_00000293,n01440764 1 2 3 4\n"
  )
  with pytest.raises(ValueError, match="is unknown, expected a file with one"):
    list_official(tmp_path / "there")


def repack(folder, made, *, prefix, nested):
  """Packs the small ILSVRC again, as `tar` does from a folder."""
  made.mkdir()
  for split in tars.TARS:
    with tarfile.open(made / tars.TARS[split], "w") as outer:
      directory = tarfile.TarInfo("./")
      directory.type = tarfile.DIRTYPE
      outer.addfile(directory)
      content = {"._x": b"", **small_ilsvrc.read(folder, split)}
      if split == "train" and nested:
        content = {"._x": b""}
        with tarfile.open(folder / tars.TARS[split]) as tar:
          for one in tar:
            content[one.name] = tar.extractfile(one).read()
      for name, encoded in content.items():
        header = tarfile.TarInfo(prefix + name)
        header.size = len(encoded)
        outer.addfile(header, io.BytesIO(encoded))
  return made


@pytest.mark.parametrize(
  ("prefix", "nested"), [("./", True), ("./", False), ("a/train/", False)]
)
def test_tars_that_were_packed_again_are_read(
  prefix, nested, ilsvrc_tars, expected, tmp_path
):
  made = repack(ilsvrc_tars, tmp_path / "made", prefix=prefix, nested=nested)
  found, listing = list_official(made)
  assert read_all(found, listing) == expected
  assert listing.skipped == (1 if nested else 2)


def test_compressed_tar_is_refused_with_what_to_run(ilsvrc_tars, tmp_path):
  copied = pathlib.Path(shutil.copytree(ilsvrc_tars, tmp_path / "tars"))
  path = copied / tars.TARS["validation"]
  content = gzip.compress(path.read_bytes(), compresslevel=1)
  path.write_bytes(content)
  message = f"{path} is compressed, expected .* Run gunzip on it."
  with pytest.raises(ValueError, match=message):
    find(copied)
  path.rename(f"{path}.gz")
  with pytest.raises(ValueError, match="val.tar.gz is compressed"):
    find(copied)


def list_own(folder, data_dir, *, validation=0.2):
  """Finds and lists pictures of one's own as `prepare` does."""
  found = find(folder, validation=validation, subset=False)
  sets.make_to_prepare(
    *("mine",),
    data_dir=str(data_dir),
    encoding="jpeg",
    side=8,
    class_names=found.class_names,
  )
  return found, recognition.list_files(
    found, found.class_names, is_imagenet=False, subset=False
  )


def find_names(listing):
  return {
    split: {member.name for member in files}
    for split, files in listing.files.items()
  }


def test_split_follows_from_the_name_of_a_picture_alone(tmp_path):
  first, other = tmp_path / "bilder", tmp_path / "Bilder, neu [2]"
  own_pictures.write(first)
  names = find_names(list_own(first, tmp_path)[1])
  assert len(names["train"]) + len(names["validation"]) == 60
  assert 4 <= len(names["validation"]) <= 20  # 12, within 2.6 deviations
  # Elsewhere, without some of them, and with others.
  shutil.copytree(first, other)
  shutil.rmtree(other / "Zwei Wörter")
  shutil.copytree(other / "ñandú", other / "neu", symlinks=True)
  for split, found in find_names(list_own(other, tmp_path)[1]).items():
    kept = {name for name in names[split] if not name.startswith("Zwei")}
    assert {name for name in found if not name.startswith("neu")} == kept
  # What a tenth takes, a fifth takes, too.
  tenth = find_names(list_own(first, tmp_path, validation=0.1)[1])
  assert tenth["validation"] < names["validation"]


def test_own_pictures_are_listed_by_class_with_what_is_skipped(tmp_path):
  own_pictures.write(tmp_path / "there", count=3)
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere" / "a.jpg").touch()
  (tmp_path / "there" / "link").symlink_to(tmp_path / "elsewhere")
  # Of a link to itself, in a class; and beside the classes.
  (tmp_path / "elsewhere" / "itself.jpg").symlink_to("itself.jpg")
  (tmp_path / "there" / "itself").symlink_to("itself")
  found, listing = list_own(tmp_path / "there", tmp_path)
  assert found.class_names == tuple(sorted((*own_pictures.CLASSES, "link")))
  members = [one for files in listing.files.values() for one in files]
  for member in members:
    assert found.class_names[member.label] == member.name.split("/")[0]
    if not member.name.endswith("itself.jpg"):
      assert os.path.isfile(found.locate(member))
  assert len(members) == 5 * 3 + 2
  # A folder that is skipped counts as one.
  assert listing.skipped == len(own_pictures.SKIPPED) + 1


def write_classes(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def make_loop(folder, to="a"):
  write_classes(folder, "a/1.jpg", "b/1.jpg")
  (folder / "a" / "again").symlink_to(folder / to)


def make_kaggle(folder, solution):
  root = folder / "Data" / "CLS-LOC"
  write_classes(root, "train/a/1.jpg", "val/2.jpg")
  (folder / "LOC_val_solution.csv").write_bytes(solution)


PARQUET = [{"image": {"bytes": b"x", "path": "a.jpg"}, "label": 0}]
ID = "n01440764"


@pytest.mark.parametrize(
  ("make", "options", "message"),
  [
    (lambda at: None, {}, "there is no folder .*Set --from"),
    (lambda at: at.mkdir(), {}, "no pictures in a form that is known"),
    (
      lambda at: write_classes(at, "a/1.jpg"),
      {"validation": None},
      "no validation pictures.*Set --validation=0.1",
    ),
    (
      lambda at: write_classes(at, "train/a/1.jpg", "val/a/1.jpg"),
      {},
      "--validation is 0.2, but there are .*Leave --validation out",
    ),
    (
      lambda at: write_classes(at, "train/a/1", "val/a/1", "valid/a/1"),
      {"validation": None},
      "the folders val and valid, expected one",
    ),
    (
      lambda at: write_classes(at, "train/a/1.jpg", "val/b/1.jpg"),
      {"validation": None},
      "val/b is a class without training pictures",
    ),
    (
      lambda at: write_classes(at, "train/a/1.jpg", "val/1.jpg"),
      {"validation": None},
      "the class of .*val/1.jpg is unknown",
    ),
    (  # a class of ImageNet, but none of training
      lambda at: write_classes(
        at, "train/a/1.jpg", "val/ILSVRC2012_val_00000001.JPEG"
      ),
      {"validation": None},
      "the class of .*val_00000001.JPEG is unknown",
    ),
    (
      lambda at: write_classes(at, "a/1.jpg", "b/.hidden"),
      {},
      "/b has no pictures, expected some: a folder is a class",
    ),
    (
      lambda at: make_kaggle(at, b"\xff\xfe"),
      {"validation": None},
      "LOC_val_solution.csv is no CSV file in UTF-8 .*Copy the file here again",
    ),
    (
      lambda at: make_kaggle(
        at, "\ufeffImageId,PredictionString\r\n2,b 1 2 3 4\r\n".encode()
      ),
      {"validation": None},
      "the class of .*/val/2.jpg is unknown",
    ),
    (make_loop, {}, "a/again is a link to a folder that it is in"),
    (
      lambda at: make_loop(at, to=".."),
      {},
      "a/again is a link to a folder that it is in",
    ),
    (
      lambda at: write_classes(at, "train/1.jpg", "car/1.jpg"),
      {},
      "the folders train and car.* If train is a class, rename it",
    ),
    (
      lambda at: write_classes(at, "a /1.jpg"),
      {},
      "the class 'a ' cannot be stored",
    ),
    (
      lambda at: write_classes(at, *(f"a/{n}.jpg" for n in range(3))),
      {"validation": 0.001},
      "no pictures for validation in .*Set --validation",
    ),
  ],
)
def test_wrong_folder_is_refused_before_a_write(
  make, options, message, tmp_path
):
  make(tmp_path / "there")
  with pytest.raises((ValueError, OSError), match=message):
    list_own(tmp_path / "there", tmp_path / "data", **options)
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ((f"{ID}/{ID}_1.jpg",), "as n01440764_18.JPEG.*Set --name"),
    ((f"{ID}/n02105855_1.JPEG",), "is in the class n01440764, expected there"),
    ((f"{ID}/a/{ID}_1.JPEG", f"{ID}/b/{ID}_1.JPEG"), "have the same name"),
  ],
)
def test_files_that_are_not_imagenets_are_no_imagenet256(
  names, message, tmp_path
):
  there = tmp_path / "there"
  number = ilsvrc.validation_labels().index(ID) + 1
  write_classes(
    there,
    *(f"train/{name}" for name in names),
    f"val/{ID}/ILSVRC2012_val_{number:08d}.JPEG",
  )
  with pytest.raises(ValueError, match=message):
    list_official(there)


def test_imagenet_that_lacks_pictures_needs_subset(ilsvrc_tars, tmp_path):
  small_ilsvrc.write_folders(ilsvrc_tars, tmp_path / "there")
  found = find(tmp_path / "there", subset=False)
  # Four classes are a set of one's own, unless they are called a subset.
  assert not ilsvrc.are_classes(found.class_names, subset=False)
  assert ilsvrc.are_classes(found.class_names, subset=True)
  message = "122 pictures for train in .* expected 1,281,167. .*set --subset"
  with pytest.raises(ValueError, match=message):
    recognition.list_files(
      found, ilsvrc.class_names(), is_imagenet=True, subset=False
    )


def write_split(folder, rows=PARQUET, **options):
  folder.mkdir()
  for split in tars.TARS:
    path = folder / f"{split}-00000-of-00001.parquet"
    small_ilsvrc.write_rows(path, rows, **options)
  return folder


@pytest.mark.parametrize(
  ("metadata", "label", "names"),
  [
    (None, 3, ("0", "1", "2", "3")),
    (
      {"huggingface": '{"info": {"features": {"label": {"names": '
       '["crane", " b ", "crane"]}}}}'},
      2,
      ("crane", "b", "crane (2)"),
    ),
    ({"huggingface": "{"}, 0, ("0",)),
  ],
)  # fmt: skip
def test_parquet_of_other_classes_makes_a_set_of_its_own(
  metadata, label, names, tmp_path
):
  rows = [
    *PARQUET,
    {"image": {"bytes": None, "path": None}, "label": label},
    {"image": None, "label": 0},
  ]
  folder = write_split(tmp_path / "there", rows, metadata=metadata)
  found, listing = list_own(folder, tmp_path, validation=None)
  assert found.class_names == names
  file = "train-00000-of-00001.parquet"
  with found.open("") as read:
    contents = {
      member.name: (member.label, read(member))
      for member in listing.files["train"]
    }
  assert contents == {
    f"{file}:0 a.jpg": (0, b"x"),
    f"{file}:1": (label, b""),
    f"{file}:2": (0, b""),
  }


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    ("missing", "parquet files for train, from .*expected each one of"),
    ("no split", "no parquet files for validation"),
    ("cut short", "is no complete parquet file"),
    ("columns", "has image: string, label: int64, expected columns image"),
    ("label", "row 0 of .* has the label -1, expected 0..0"),
  ],
)
def test_wrong_parquet_files_are_refused(damage, message, tmp_path):
  folder = write_split(tmp_path / "there")
  train = folder / "train-00000-of-00001.parquet"
  if damage == "missing":
    train.rename(folder / "train-00000-of-00002.parquet")
  elif damage == "no split":
    (folder / "validation-00000-of-00001.parquet").unlink()
  elif damage == "cut short":
    os.truncate(train, train.stat().st_size // 2)
  elif damage == "columns":
    table = small_ilsvrc.pyarrow.table({"image": ["a"], "label": [0]})
    small_ilsvrc.parquet.write_table(table, train)
  else:
    small_ilsvrc.write_rows(train, [{**PARQUET[0], "label": -1}])
  with pytest.raises(ValueError, match=message):
    list_own(folder, tmp_path, validation=None)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_parquet_without_rows_is_refused(split, tmp_path):
  folder = write_split(tmp_path / "there")
  small_ilsvrc.write_rows(folder / f"{split}-00000-of-00001.parquet", [])
  message = f"no pictures for {split} in .*there, expected some. Set --val"
  with pytest.raises(ValueError, match=message):
    list_own(folder, tmp_path, validation=None)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
  folder = write_split(tmp_path / "there")
  parquet._import_pyarrow.cache_clear()
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(ImportError, match="pip install pyarrow"):
    find(folder)


def test_parquet_is_read_alike_before_and_after_it_is_unpacked(
  ilsvrc_tars, tmp_path
):
  small_ilsvrc.write_parquet(ilsvrc_tars, tmp_path / "there")
  found, listing = list_official(tmp_path / "there")
  members = listing.files["train"][::10]
  scratch = str(tmp_path / "scratch")

  def read_some():
    with found.open(scratch) as read:
      return [read(member) for member in members]

  before = read_some()
  assert found.count_unpacked_bytes(scratch) > 1_000_000
  found.unpack(scratch)
  assert found.count_unpacked_bytes(scratch) == 0
  written = {path: path.stat().st_mtime_ns for path in unpacked(scratch)}
  found.unpack(scratch)  # what is there stays
  assert written == {
    path: path.stat().st_mtime_ns for path in unpacked(scratch)
  }
  shutil.rmtree(tmp_path / "there")
  assert read_some() == before


def unpacked(scratch):
  return sorted(pathlib.Path(scratch).iterdir())


def test_listing_is_loaded_as_it_was_saved(tmp_path):
  own_pictures.write(tmp_path / "there", count=2)
  (tmp_path / "there" / "ñandú" / os.fsdecode(b"no \xff text.jpg")).touch()
  _, listing = list_own(tmp_path / "there", tmp_path, validation=0.4)
  made_from = {"from": "there", "size": 3}
  origin.save_listing(str(tmp_path), made_from, listing)
  assert origin.load_listing(str(tmp_path), made_from) == listing
  with pytest.raises(ValueError, match="size: 3 there, 4 here"):
    origin.load_listing(str(tmp_path), made_from | {"size": 4})
  assert origin.load_listing(str(tmp_path / "none"), made_from) is None


@pytest.mark.parametrize(
  ("folder", "name"),
  [
    ("/a/Meine Bilder [v1] #2 äöü/", "meine_bilder_v1_2_aou"),
    ("flowers-102", "flowers_102"),
    ("/a/2024", None),
    ("/a/写真", None),
  ],
)
def test_name_of_a_set_is_made_from_that_of_the_folder(folder, name):
  if name is None:
    with pytest.raises(ValueError, match="makes no name of a set.*Set --name"):
      own_set.make_name(folder)
  else:
    assert own_set.make_name(folder) == name
    own_set.check_name(name)


def test_picture_of_several_is_counted_as_one():
  first, second = (
    small_sets.Image.fromarray(tile) for tile in small_sets.tiles(2)
  )
  encoded = io.BytesIO()
  first.save(encoded, format="MPO", save_all=True, append_images=[second])
  options = {"side": 32, "rotate": False}
  square, odd = shards.read_square(encoded.getvalue(), name="a.jpg", **options)
  assert odd == ["several"]
  jpeg = small_sets.encode(small_sets.tiles(1)[0], "JPEG")
  expected, odd = shards.read_square(jpeg, name="a.png", **options)
  assert odd == []
  assert square.tobytes() == expected.tobytes()


def test_noted_rotation_is_applied_where_it_is_asked_for():
  tile = small_sets.tiles(1)[0]
  exif = small_sets.Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  encoded = small_sets.encode(tile, exif=exif)
  for rotate, expected in ((False, tile), (True, np.rot90(tile, -1))):
    found, _ = shards.read_square(encoded, 32, name="a.png", rotate=rotate)
    np.testing.assert_array_equal(found, expected)

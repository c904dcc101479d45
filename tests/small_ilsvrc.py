"""A small ILSVRC 2012 of real pictures, in the official layout and others."""

import io
import pathlib
import tarfile
from collections.abc import Mapping

import numpy as np
import pyarrow
from PIL import ExifTags, Image
from pyarrow import parquet
from sklearn import datasets

from alexnet_jax.data import ilsvrc, tars
from tests import small_sets

CLASSES = ("n01440764", "n02105855", "n03062245", "n13037406")
TRAINING = 30  # of each class
VALIDATION = 40
CMYK = "n03062245_4620.JPEG"
PNG = "n02105855_2933.JPEG"
GRAY = "n13037406_7.JPEG"
# With a note of a rotation, which is not applied.
ROTATED = "n01440764_12.JPEG"
TRUNCATED = "n01440764_3.JPEG"


def write(folder: pathlib.Path, *, truncated: bool = True) -> None:
  """Writes both tars; `truncated` cuts one of the files in the middle."""
  rng = np.random.default_rng(0)
  photos = [
    datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")
  ]

  def cut(photo: int) -> np.ndarray:
    height, width = rng.integers(140, 420, 2)
    top = rng.integers(0, 427 - height + 1)
    left = rng.integers(0, 640 - width + 1)
    return photos[photo][top : top + height, left : left + width]

  with tarfile.open(folder / tars.TARS["train"], "w") as outer:
    for position, name in enumerate(CLASSES):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode="w") as tar:
        for file, encoded in _training(name, position % 2, cut):
          if truncated and file == TRUNCATED:
            encoded = encoded[: len(encoded) // 2]
          _add(tar, file, encoded)
      _add(outer, f"{name}.tar", inner.getvalue())
  labels = ilsvrc.validation_labels()
  numbers = [n for n, label in enumerate(labels, 1) if label in CLASSES]
  with tarfile.open(folder / tars.TARS["validation"], "w") as tar:
    for number in numbers[:VALIDATION]:
      picture = cut(CLASSES.index(labels[number - 1]) % 2)
      encoded = small_sets.encode(picture, "JPEG")
      _add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", encoded)


def read(folder: pathlib.Path, split: str = "train") -> dict[str, bytes]:
  """The files of a tar, by Python's own tarfile."""
  files = {}
  if split == "validation":
    with tarfile.open(folder / tars.TARS[split]) as tar:
      return {one.name: tar.extractfile(one).read() for one in tar}
  with tarfile.open(folder / tars.TARS["train"]) as outer:
    for header in outer:
      with tarfile.open(fileobj=outer.extractfile(header)) as tar:
        for inner in tar:
          files[inner.name] = tar.extractfile(inner).read()
  return files


def find_class(name: str) -> str:
  """The WordNet id of a file."""
  if not name.startswith("ILSVRC2012_val_"):
    return name.partition("_")[0]
  return ilsvrc.validation_labels()[int(name[-13:-5]) - 1]


def write_folders(tar_folder: pathlib.Path, folder: pathlib.Path) -> None:
  """Unpacks the tars as torchvision does."""
  for split, place in (("train", "train"), ("validation", "val")):
    for name, content in read(tar_folder, split).items():
      path = folder / place / find_class(name) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)


def write_kaggle(tar_folder: pathlib.Path, folder: pathlib.Path) -> None:
  """Unpacks the tars as Kaggle's archive has them."""
  root = folder / "ILSVRC" / "Data" / "CLS-LOC"
  for name, content in read(tar_folder).items():
    path = root / "train" / find_class(name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  (root / "val").mkdir()
  (root / "test").mkdir()
  rows = ["ImageId,PredictionString"]
  for name, content in read(tar_folder, "validation").items():
    (root / "val" / name).write_bytes(content)
    rows.append(
      f"{name[:-5]},{find_class(name)} 1 2 30 40 {CLASSES[0]} 1 2 3 4"
    )
  (root / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(content)
  (folder / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")


def write_parquet(
  tar_folder: pathlib.Path, folder: pathlib.Path, *, files: int = 3
) -> None:
  """Writes the tars as hubs do: rows in another order, classes in the names."""
  (folder / "data").mkdir(parents=True)
  for split in tars.TARS:
    content = sorted(read(tar_folder, split).items(), key=lambda one: one[1])
    rows = [
      {
        "image": {
          "bytes": encoded,
          "path": f"{name.removesuffix('.JPEG')}_{find_class(name)}.JPEG",
        },
        "label": ilsvrc.class_names().index(find_class(name)),
      }
      for name, encoded in content
    ]
    for index in range(files):
      write_rows(
        folder / "data" / f"{split}-{index:05d}-of-{files:05d}.parquet",
        rows[index::files],
      )


def write_rows(
  path: pathlib.Path, rows: list[Mapping], *, metadata: Mapping | None = None
) -> None:
  """Writes a parquet file with columns image and label."""
  image = pyarrow.struct(
    [("bytes", pyarrow.binary()), ("path", pyarrow.string())]
  )
  schema = pyarrow.schema(
    [("image", image), ("label", pyarrow.int64())], metadata=metadata
  )
  table = pyarrow.Table.from_pylist(rows, schema=schema)
  parquet.write_table(table, path, row_group_size=17)


def _training(name, photo, cut):
  """Yields the name and the content of each file of a class."""
  jpeg = {"kind": "JPEG", "quality": 96}
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  special = {
    CMYK: jpeg | {"mode": "CMYK"},
    PNG: {},
    GRAY: jpeg | {"mode": "L"},
    ROTATED: jpeg | {"exif": exif},
  }
  files = [f"{name}_{number}.JPEG" for number in range(TRAINING)]
  files += [file for file in special if file.startswith(name)]
  for file in dict.fromkeys(files):
    yield file, small_sets.encode(cut(photo), **special.get(file, jpeg))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  header = tarfile.TarInfo(name)
  header.size = len(content)
  tar.addfile(header, io.BytesIO(content))

"""Pictures of a user: what is read, how it is named, and what is refused."""

import io
import os
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image

from alexnet_jax.data import decode, pictures
from tests import small_sets

TILES = small_sets.tiles(3, side=16)
SIDE = 16
# What a viewer does for each orientation of EXIF: of rows and columns.
# Source: CIPA DC-008 (Exif 2.32), tag 0x0112.
TURNS = {
  1: lambda x: x,
  2: np.fliplr,
  3: lambda x: np.rot90(x, 2),
  4: np.flipud,
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
  8: np.rot90,
}


def read(images, side=SIDE):
  return pictures.read_pictures(images, side=side)


@pytest.fixture
def folder(tmp_path):
  """Two pictures, b before a in time; hidden files; a folder inside."""
  place = tmp_path / "Ähren und Öl"
  (place / "more").mkdir(parents=True)
  for name, tile in (("b ü.png", TILES[1]), ("a.bmp", TILES[0])):
    Image.fromarray(tile).save(place / name)
  for name in (".hidden.png", "Thumbs.db", "desktop.ini", "more/c.png"):
    (place / name).write_bytes(small_sets.encode(TILES[2]))
  return place


def test_arrays_of_any_size_become_squares_of_their_pixels():
  gray = TILES[1][..., 0]
  larger = small_sets.tiles(1, side=24)[0]
  found = read([TILES[0], gray, TILES[1:], larger[:, ::-1]])
  assert found.names == tuple(f"picture {number}" for number in range(5))
  assert found.problems == ()
  assert found.pixels.dtype == np.uint8
  np.testing.assert_array_equal(found.pixels[0], TILES[0])
  np.testing.assert_array_equal(
    found.pixels[1], np.repeat(gray[..., None], 3, axis=2)
  )
  np.testing.assert_array_equal(found.pixels[2:4], TILES[1:])
  expected = np.empty((SIDE, SIDE, 3), np.uint8)
  decode.decode(small_sets.encode(larger[:, ::-1]), expected)
  np.testing.assert_array_equal(found.pixels[4], expected)
  np.testing.assert_array_equal(read(TILES).pixels, TILES)
  np.testing.assert_array_equal(read(TILES[0]).pixels, TILES[:1])


def test_folder_stands_for_its_files_by_name(folder):
  found = read(folder)
  assert found.names == (f"{folder}/a.bmp", f"{folder}/b ü.png")
  assert found.problems == ()
  np.testing.assert_array_equal(found.pixels, TILES[:2])


def test_any_mixture_keeps_its_order(folder):
  path = folder / "b ü.png"
  found = read([TILES[2], str(path), folder, [TILES[0]]])
  assert found.names == (
    "picture 0",
    str(path),
    f"{folder}/a.bmp",
    f"{folder}/b ü.png",
    "picture 4",
  )
  np.testing.assert_array_equal(found.pixels, TILES[[2, 1, 0, 1, 0]])
  np.testing.assert_array_equal(read(folder.glob("b*")).pixels, TILES[1:2])


def test_file_that_cannot_be_read_is_named_with_the_reason(folder, tmp_path):
  encoded = small_sets.encode(TILES[2], "JPEG", quality=95)
  files = {
    "empty.jpg": (b"", "it is empty"),
    "page.jpg": (b"<!doctype html><p>404", "it is a web page"),
    "short.jpg": (encoded[:-50], "it ends early: "),
    "text.png": (b"some words", "it is none of BMP, GIF, JPEG, PNG, PPM, TIFF"),
  }
  for name, (content, _) in files.items():
    (folder / name).write_bytes(content)
  nothing = tmp_path / "nothing"
  nothing.mkdir()
  os.mkfifo(tmp_path / "pipe")
  (folder / "itself").symlink_to("itself")
  found = read([folder, tmp_path / "gone", nothing, tmp_path / "pipe"])
  np.testing.assert_array_equal(found.pixels, TILES[:2])
  expected = [
    (f"{folder}/{name}", reason) for name, (_, reason) in files.items()
  ]
  expected.insert(1, (f"{folder}/itself", "Too many levels of symbolic links"))
  expected += [
    (f"{tmp_path}/gone", "No such file"),
    (f"{tmp_path}/nothing", "it is a folder without files"),
    (f"{tmp_path}/pipe", "it is no file"),
  ]
  assert len(found.problems) == len(expected)
  for problem, (path, reason) in zip(found.problems, expected, strict=True):
    assert problem.startswith(f"'{path}' cannot be read: {reason}")
    assert "\n" not in problem and "0x" not in problem


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_rotation_that_a_camera_noted_is_applied(kind, orientation, tmp_path):
  # Four gray quarters, which no encoding mixes up.
  quarters = np.kron([[0, 80], [160, 250]], np.ones((32, 32))).astype(np.uint8)
  pixels = np.repeat(quarters[..., None], 3, axis=2)
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  path = tmp_path / "rotated"
  Image.fromarray(pixels).save(path, kind, exif=exif)
  turned = TURNS[orientation](quarters)
  found = read(path, side=64).pixels[0, ..., 1].astype(int)
  # Lossy encodings change flat areas by a few gray levels, and edges by more.
  for rows in (slice(8, 24), slice(40, 56)):
    for columns in (slice(8, 24), slice(40, 56)):
      assert np.abs(found - turned)[rows, columns].max() < 8


def test_rotation_is_not_applied_to_records():
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  encoded = io.BytesIO()
  Image.fromarray(TILES[0]).save(encoded, "PNG", exif=exif)
  found = np.empty((SIDE, SIDE, 3), np.uint8)
  decode.decode(encoded.getvalue(), found)
  np.testing.assert_array_equal(found, TILES[0])


def test_damaged_metadata_neither_refuse_a_picture_nor_warn(tmp_path):
  for number, exif in enumerate(
    (
      b"Exif\0\0garbage",
      # A directory of 65,535 entries that are not there.
      b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0",
    )
  ):
    for kind in ("PNG", "JPEG", "WEBP"):
      path = tmp_path / f"{number}.{kind}"
      Image.fromarray(TILES[0]).save(path, kind, exif=exif)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = read(tmp_path)
  assert len(found.names) == 6 and not found.problems and not caught


@pytest.mark.parametrize(
  ("images", "error", "expected"),
  [
    (
      TILES / 255,
      TypeError,
      "picture 0 is an array of float64, expected uint8",
    ),
    ([TILES[0], TILES[0] > 9], TypeError, "picture 1 is an array of bool"),
    (TILES[..., :2], ValueError, r"shape \(16, 16, 2\), expected \(h, w, 3\)"),
    (TILES[..., 0], ValueError, r"shape \(3, 16, 16\), expected"),
    (TILES[:, :0], ValueError, r"shape \(0, 16, 3\), expected .* one pixel"),
    (TILES[0, 0, 0], ValueError, r"picture 0 has the shape \(3,\), expected"),
    (np.uint8(3), ValueError, r"picture 0 has the shape \(\), expected"),
    (TILES[:0], ValueError, "there are no pictures, expected an array u8"),
    ([], ValueError, "there are no pictures, expected an array u8"),
    ([3], TypeError, "3 is no picture, expected an array u8"),
    (None, TypeError, "None is no picture, expected an array u8"),
    (b"a.jpg", TypeError, "b'a.jpg' is no picture, expected an array u8"),
    ({"a": TILES[0]}, TypeError, "is no picture, expected an array u8"),
  ],
)
def test_what_is_no_picture_is_refused_in_one_line(images, error, expected):
  with pytest.raises(error, match=expected) as caught:
    read(images)
  assert "\n" not in str(caught.value)


def test_error_without_any_picture_quotes_the_first_problems(tmp_path):
  for number in range(5):
    (tmp_path / f"{number}.jpg").write_bytes(b"")
  with pytest.raises(ValueError, match="no picture can be read") as caught:
    read(tmp_path)
  message = str(caught.value)
  assert f"'{tmp_path}/0.jpg' cannot be read: it is empty; " in message
  assert message.count("it is empty") == 3 and "; and 2 more. Give" in message

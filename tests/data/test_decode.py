import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn import datasets

from alexnet_jax.data import decode
from tests import small_sets


def decoded(encoded, side):
  out = np.zeros((side, side, 3), np.uint8)
  decode.decode(encoded, out)
  return out


def by_pillow(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (40, 40), (17, 90)])
def test_any_picture_becomes_a_square_of_bytes(mode, size):
  picture = Image.fromarray(datasets.load_sample_image("china.jpg"))
  kind = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
  encoded = small_sets.encode(np.array(picture.resize(size)), kind, mode=mode)
  assert decoded(encoded, 32).std() > 10  # not a blank


def test_rotation_that_cannot_be_read_is_none_but_lack_of_memory_is_an_error(
  monkeypatch,
):
  errors = [SyntaxError("not a TIFF file"), KeyError(1), MemoryError()]

  def fail(picture, *, in_place):
    raise errors.pop(0)

  monkeypatch.setattr(ImageOps, "exif_transpose", fail)
  picture = Image.fromarray(small_sets.tiles(1)[0])
  before = picture.tobytes()
  for _ in range(2):
    decode.rotate(picture)
  assert picture.tobytes() == before
  with pytest.raises(MemoryError):
    decode.rotate(picture)


def test_square_is_the_center_of_the_picture():
  pixels = np.zeros((8, 24, 3), np.uint8)
  pixels[:, 8:16] = 200
  assert (decoded(small_sets.encode(pixels), 8) == 200).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_the_stored_size_has_the_pixels_that_pillow_finds(
  mode, quality, subsampling, progressive
):
  tile = datasets.load_sample_image("flower.jpg")[100:228, 200:328]
  options = {"subsampling": subsampling, "progressive": progressive}
  encoded = small_sets.encode(
    tile, "JPEG", mode=mode, quality=quality, **options
  )
  np.testing.assert_array_equal(decoded(encoded, 128), by_pillow(encoded))


def test_jpeg_with_a_small_fault_is_read_as_pillow_reads_it():
  tile = datasets.load_sample_image("flower.jpg")[:64, :64]
  encoded = small_sets.encode(tile, "JPEG")
  # Bytes that belong to nothing, as in some files of ImageNet.
  encoded = encoded[:-2] + b"\x00\x01\x02" + encoded[-2:]
  np.testing.assert_array_equal(decoded(encoded, 64), by_pillow(encoded))


def test_bytes_that_are_no_whole_image_are_refused_in_words():
  tile = small_sets.tiles(1)[0]
  cases = {
    small_sets.encode(tile, "JPEG", quality=95)[:-40]: "file is truncated",
    small_sets.encode(tile, "JPEG")[:100]: "Truncated File Read",
    small_sets.encode(tile, "PNG")[:-40]: "image file is truncated",
    small_sets.encode(tile, "WEBP")[:-40]: "Pillow cannot decode it: ",
    b"": "it is empty",
    b"\n<!DOCTYPE HTML>\n<html>": "it is a web page",
    b"<?xml version='1.0'?><html xmlns='...'>": "it is a web page",
    b"not an image" * 20: "it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP",
  }
  for encoded, reason in cases.items():
    with pytest.raises(decode.PictureError, match=reason) as caught:
      decoded(encoded, 32)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_pixels_are_taken_as_they_are_or_brought_to_the_square():
  tile = small_sets.tiles(1)[0]
  out = np.zeros((32, 32, 3), np.uint8)
  decode.copy_pixels(tile.tobytes(), (32, 32, 3), out)
  np.testing.assert_array_equal(out, tile)
  decode.copy_pixels(tile[..., :1].tobytes(), (32, 32, 1), out)
  np.testing.assert_array_equal(out, np.repeat(tile[..., :1], 3, axis=2))
  small = np.zeros((16, 16, 3), np.uint8)
  decode.copy_pixels(tile.tobytes(), (32, 32, 3), small)
  np.testing.assert_array_equal(small, decoded(small_sets.encode(tile), 16))
  with pytest.raises(ValueError, match="3,071 bytes of pixels, expected 3,072"):
    decode.copy_pixels(tile.tobytes()[1:], (32, 32, 3), out)


RANDOM = np.random.default_rng(0)
# Of more than 8 bits; 0, white, and what lies next to a step of 8 bits.
DEEP = RANDOM.integers(0, 2**16, (6, 6), dtype=np.uint16)
DEEP[0] = (0, 65535, 128, 129, 256, 257)
RGB = RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8)
ALPHA = RANDOM.integers(0, 256, (6, 6), dtype=np.uint8)
ALPHA[0, :2] = 0, 255
INK = RANDOM.integers(0, 256, (6, 6, 4), dtype=np.uint8)
# Colors of a palette; the first and the third are transparent in some tests.
PALETTE = RANDOM.integers(0, 256, (4, 3), dtype=np.uint8)
INDICES = RANDOM.integers(0, 4, (6, 6), dtype=np.uint8)


def save(picture, kind, **options):
  encoded = io.BytesIO()
  picture.save(encoded, kind, **options)
  return encoded.getvalue()


def make_paletted(**options):
  picture = Image.frombytes("P", (6, 6), INDICES.tobytes())
  picture.putpalette(PALETTE.tobytes())
  return save(picture, "PNG", **options)


def from_16_bits(values):
  """Gray values as RGB; 65,535 is white."""
  gray = np.array(
    [[round(int(v) * 255 / 65535) for v in row] for row in values]
  )
  return np.repeat(gray[..., None], 3, axis=2)


def on_white(rgb, alpha):
  """Each color over white."""
  alpha = alpha[..., None] / 255.0
  return alpha * rgb + (1 - alpha) * 255


def test_deep_gray_is_scaled_and_not_clipped():
  expected = from_16_bits(DEEP)
  pgm = b"P5 6 6 65535\n" + DEEP.astype(">u2").tobytes()
  # Pillow brings the values of a PGM file to 16 bits: 12 bits of a camera.
  camera = b"P5 6 6 4095\n" + (DEEP >> 4).astype(">u2").tobytes()
  floats = Image.fromarray(DEEP.astype(np.float32) / 65535)
  for encoded in (
    save(Image.fromarray(DEEP), "PNG"),
    save(Image.fromarray(DEEP), "TIFF"),
    save(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
    save(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    save(floats, "TIFF"),
    pgm,
  ):
    np.testing.assert_array_equal(decoded(encoded, 6), expected)
  found = decoded(camera, 6)
  gray = np.rint((DEEP >> 4) * (255 / 4095))
  # Rounded twice.
  assert np.abs(found - gray[..., None]).max() <= 1


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    (
      np.array([[-1, 65535]], np.int32),
      "are -1 to 65535, expected 0 to 65,535",
    ),
    (np.array([[0, 65536]], np.int32), "are 0 to 65536, expected 0 to 65,535"),
    (np.array([[0.0, 255.0]], np.float32), "are 0 to 255, expected 0 to 1"),
    (np.array([[0.0, np.nan]], np.float32), "are nan to nan, expected 0 to 1"),
  ],
)
def test_gray_of_unknown_scale_is_refused(values, expected):
  encoded = save(Image.fromarray(values), "TIFF")
  with pytest.raises(decode.PictureError, match=f"its gray values {expected}"):
    decoded(encoded, 1)


def test_transparent_parts_are_white():
  rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
  la = Image.merge("LA", [Image.fromarray(RGB[..., 0]), rgba.getchannel("A")])
  gray = np.repeat(RGB[..., :1], 3, axis=2)
  colors = PALETTE[INDICES]
  is_clear = np.isin(INDICES, (0, 2))[..., None]
  alphas = np.array([0, 255, 100, 200])
  key = tuple(map(int, RGB[2, 3]))
  is_key = (key == RGB).all(axis=2)[..., None]
  for encoded, expected in (
    (save(rgba, "PNG"), on_white(RGB, ALPHA)),
    (save(rgba, "TIFF"), on_white(RGB, ALPHA)),
    (save(la, "PNG"), on_white(gray, ALPHA)),
    (make_paletted(), colors),
    (
      make_paletted(transparency=0),
      np.where(INDICES[..., None] == 0, 255, colors),
    ),
    (
      make_paletted(transparency=bytes([0, 255, 0, 255])),
      np.where(is_clear, 255, colors),
    ),
    (
      make_paletted(transparency=alphas.astype(np.uint8).tobytes()),
      on_white(colors, alphas[INDICES]),
    ),
    (
      save(Image.fromarray(RGB), "PNG", transparency=key),
      np.where(is_key, 255, RGB),
    ),
    (
      save(Image.fromarray(DEEP), "PNG", transparency=257),
      np.where(DEEP[..., None] == 257, 255, from_16_bits(DEEP)),
    ),
  ):
    # Pillow blends in integers.
    assert np.abs(decoded(encoded, 6) - expected).max() <= 1


def test_opaque_pictures_keep_their_bytes():
  opaque = Image.fromarray(np.dstack([RGB, np.full((6, 6), 255, np.uint8)]))
  np.testing.assert_array_equal(decoded(save(opaque, "PNG"), 6), RGB)


def test_inks_become_the_colors_that_they_leave():
  picture = Image.frombytes("CMYK", (6, 6), INK.tobytes())
  ink = INK / 255.0
  expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
  # Pillow multiplies in integers.
  assert np.abs(decoded(save(picture, "TIFF"), 6) - expected).max() <= 1


def test_one_pixel_fills_the_square():
  pixel = np.array([[[10, 200, 90]]], np.uint8)
  found = decoded(small_sets.encode(pixel), 16)
  np.testing.assert_array_equal(found, np.broadcast_to(pixel, (16, 16, 3)))


@pytest.mark.parametrize(
  "size", [(64, 48), (17, 90), (1000, 11), (11, 1100), (33, 3400)]
)
def test_ordinary_shapes_are_scaled_whole_and_cropped(size):
  picture = Image.fromarray(datasets.load_sample_image("china.jpg")).resize(
    size
  )
  scale = 32 / min(size)
  width, height = (round(scale * length) for length in size)
  whole = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
  top, left = (height - 32) // 2, (width - 32) // 2
  np.testing.assert_array_equal(
    decoded(save(picture, "PNG"), 32),
    whole[top : top + 32, left : left + 32],
  )


def test_square_has_the_pixels_of_scaling_the_whole_picture_at_once():
  random = np.random.default_rng(0)
  shapes = np.exp(random.uniform(0, np.log(60), (60, 3))).astype(int)
  shapes[:, 0] *= shapes[:, 1]  # up to 60 times as wide as high
  for *size, side in [*shapes.tolist(), (3400, 33, 7), (41, 40, 13)]:
    pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    width, height = (round(side / min(size) * length) for length in size)
    left, top = (width - side) // 2, (height - side) // 2
    whole = picture.resize((width, height), Image.Resampling.BICUBIC)
    if max(size) > 100 * min(size) and side > min(size):
      continue  # cropped before it is scaled
    np.testing.assert_array_equal(
      decode.to_square(picture, side),
      whole.crop((left, top, left + side, top + side)),
    )


@pytest.mark.parametrize("upright", [False, True])
def test_very_long_picture_gives_its_center(upright):
  pixels = RANDOM.integers(0, 256, (2, 2000, 3), dtype=np.uint8)
  # The same by the ordinary way, from 60 pixels about the center.
  part = pixels[:, 970:1030]
  if upright:
    pixels, part = pixels.swapaxes(0, 1), part.swapaxes(0, 1)
  found = decoded(small_sets.encode(pixels), 32).astype(int)
  expected = decoded(small_sets.encode(part), 32)
  # Weights of pixels are rounded otherwise, in each of two passes.
  assert np.abs(found - expected).max() <= 2
  assert found.std() > 10


def test_very_long_picture_takes_little_memory():
  program = """
import io
import numpy as np
from PIL import Image
from alexnet_jax.data import decode
encoded = io.BytesIO()
Image.new("RGB", (20_000, 2), "red").save(encoded, "PNG")
out = np.empty((224, 224, 3), np.uint8)
decode.decode(encoded.getvalue(), out)
(peak,) = [line for line in open("/proc/self/status") if "VmHWM" in line]
print(int(peak.split()[1]) // 1024)
"""
  # Not by `resource`: a new process begins with the peak of this one.
  found = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  # Scaled whole, it would have 2 GB.
  assert int(found.stdout) < 300


def make_bomb(width, height):
  """A PNG file of one pixel that says that it is large."""
  parts = [b"\x89PNG\r\n\x1a\n"]
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0\0\0"))):
    check = zlib.crc32(kind + data)
    parts += [
      struct.pack(">I", len(data)),
      kind,
      data,
      struct.pack(">I", check),
    ]
  return b"".join(parts)


@pytest.mark.parametrize("size", [(9_500, 9_500), (50_000, 50_000)])
@pytest.mark.parametrize("quiet", [False, True])
def test_picture_of_too_many_pixels_is_an_error_and_no_warning(size, quiet):
  with warnings.catch_warnings(record=quiet) as caught:
    if quiet:
      warnings.simplefilter("always")
      decode.ignore_warnings()
    with pytest.raises(
      decode.PictureError, match="more than 89,478,485 pixels"
    ):
      decoded(make_bomb(*size), 8)
  assert not caught

import io

import numpy as np
import pytest
from PIL import Image
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
    b"": "it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP",
    b"not an image" * 20: "it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP",
  }
  for encoded, reason in cases.items():
    with pytest.raises(ValueError, match=reason):
      decoded(encoded, 32)


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

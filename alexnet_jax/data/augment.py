"""Random crop, flip and color noise, and the removal of the mean.

`draw` makes the random numbers of a batch in the global view, outside the
mapped function; `apply` uses them on the device that holds the image. Images
are sent to the devices as the bytes that are stored.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.data import statistics as statistics_lib

# Values of `Augment.mean_from`.
MEANS = ("channel", "image", "image_center")
# Values of `Augment.color_order`.
COLOR_ORDERS = ("rgb", "bgr")
# Views of a test image, the second half mirrored; `_CENTER` is the center crop.
VIEWS = 10
_CENTER = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """The augmentation of 2012; settings/fields.py has the ranges of its fields.

  Attributes:
    stored_size: side of the images to crop from, in pixels.
    image_size: side of the crop, in pixels, at most `stored_size`.
    flip: mirror half of the images, left to right.
    color_noise: standard deviation of the noise along each color direction,
      in units of the data's own; 0.1 in the paper. The paper's text scales by
      the variances; the released code, and we, by the standard deviations:
      variances would bleach every image.
    statistics: of the training split.
    mean_from: what is subtracted. `channel`: the mean of each channel. `image`
      (the paper): the mean image, cropped and mirrored like the image, as if it
      were subtracted first. `image_center` (the released code): the center crop
      of the mean image, never mirrored.
    color_divisor: divides training images after the noise, but not evaluation
      images; 1 in the paper, 1.1 in the released code.
    scale: divides all images; 1 in the paper.
    channel_scale: divides each channel (R, G, B) of all images as well; None:
      as (1, 1, 1).
    color_order: of the channels of the result; everything else is R, G, B.
    color_noise_steps: steps after which the color noise is 0; None: it never
      ends. The random numbers stay the same.
  """

  stored_size: int
  image_size: int
  flip: bool
  color_noise: float
  statistics: statistics_lib.Statistics
  mean_from: str = "channel"
  color_divisor: float = 1.0
  scale: float = 1.0
  channel_scale: tuple[float, float, float] | None = None
  color_order: str = "rgb"
  color_noise_steps: int | None = None

  def __post_init__(self):
    if self.image_size > self.stored_size:
      raise ValueError(
        f"crops of {self.image_size} pixels do not fit into images of "
        f"{self.stored_size}. Set config.network.image_size to at most "
        "config.data.stored_size."
      )
    if self.mean_from != "channel":
      self._check_mean_image()

  @property
  def num_views(self) -> int:
    """All views that are like training images: not mirrored without flips."""
    return VIEWS if self.flip else VIEWS // 2

  def _check_mean_image(self) -> None:
    image, side = self.statistics.mean_image, self.stored_size
    if image is None:
      raise ValueError(
        f"augment.mean_from is {self.mean_from!r}, but the statistics have no "
        "mean image. Set config.augment.mean_from=channel, or "
        "config.augment.statistics=dataset and config.data.name to a set with "
        "a mean image."
      )
    if image.shape != (side, side, 3):
      raise ValueError(
        f"augment.mean_from is {self.mean_from!r}, but the mean image is "
        f"{' x '.join(map(str, image.shape))}, expected {side} x {side} x 3. "
        "Set config.data.stored_size to its side, or "
        "config.augment.mean_from=channel."
      )

  def draw(
    self, key: jax.Array, n: int, *, spec, step: jax.Array | int = 0
  ) -> dict[str, jax.Array]:
    """Draws the random numbers of a batch.

    Args:
      key: from `jax.random.key`.
      n: images in the batch, over all devices.
      spec: PartitionSpec of the rows of the batch.
      step: i32[], steps before this one; for `color_noise_steps`.

    Returns:
      offset: i32[n, 2], of the crop from the top and the left, uniform over all
      places (33 x 33 for a crop of 224 from 256). flip: bool[n]. color:
      f32[n, 3], in standard deviations along the color directions.
    """
    offset_key, flip_key, color_key = jax.random.split(key, 3)
    places = self.stored_size - self.image_size + 1
    color = self.color_noise
    if self.color_noise_steps is not None:
      color = jnp.where(step < self.color_noise_steps, color, 0.0)
    return {
      "offset": jax.random.randint(
        offset_key, (n, 2), 0, places, np.int32, out_sharding=spec
      ),
      "flip": jax.random.bernoulli(
        flip_key, np.float32(0.5 * self.flip), (n,), out_sharding=spec
      ),
      "color": color * _draw_normal(color_key, (n, 3), spec=spec),
    }

  def apply(
    self, images: jax.Array, random_numbers: dict[str, jax.Array]
  ) -> jax.Array:
    """Augments the images of one device.

    Args:
      images: u8[n, stored_size, stored_size, 3].
      random_numbers: from `draw`.

    Returns:
      f32[n, image_size, image_size, 3], mean removed, channels in
      `color_order`.
    """
    offset, flip = random_numbers["offset"], random_numbers["flip"]
    stds = jnp.asarray(self.statistics.stds)[:, None]
    directions = stds * jnp.asarray(self.statistics.directions)  # f32[3, RGB]
    # Accelerators would use fewer digits by default.
    noise = jnp.matmul(
      random_numbers["color"], directions, precision=lax.Precision.HIGHEST
    )[:, None, None, :]  # f32[n, 1, 1, 3]
    crops = self._crop(images, offset, flip) + noise
    pixels = crops - self._mean(offset, flip)
    return self._scale(pixels, self.scale * self.color_divisor)

  def view(self, images: jax.Array, index: jax.Array | int) -> jax.Array:
    """Returns one of the ten views of each image, for evaluation.

    Args:
      images: u8[n, stored_size, stored_size, 3].
      index: 0..9: top left, top right, center, bottom left, bottom right, and
        these five mirrored, in the order of the released code.

    Returns:
      f32[n, image_size, image_size, 3], mean removed, channels in
      `color_order`.

    Source: Krizhevsky et al. 2012, section 4.1.
    """
    end = self.stored_size - self.image_size
    center = (end // 2, end // 2)
    places = [(0, 0), (0, end), center, (end, 0), (end, end)]
    n = images.shape[0]
    offset = jnp.broadcast_to(jnp.asarray(places, np.int32)[index % 5], (n, 2))
    flip = jnp.broadcast_to(index >= 5, (n,))
    crops = self._crop(images, offset, flip)
    return self._scale(crops - self._mean(offset[:1], flip[:1]), self.scale)

  def center(self, images: jax.Array) -> jax.Array:
    """Returns the center crop of each image, for evaluation."""
    return self.view(images, _CENTER)

  def _crop(self, images, offset, flip) -> jax.Array:
    """Crops and flips images u8[n, ...], or one image f32[...] n times."""
    size = (self.image_size, self.image_size, 3)
    # Crops bytes, then converts: a quarter of the memory traffic.
    crops = jax.vmap(
      lambda image, at: lax.dynamic_slice(
        image, (at[0], at[1], np.int32(0)), size
      ),
      in_axes=(0 if images.ndim == 4 else None, 0),
    )(images, offset)
    crops = jnp.where(flip[:, None, None, None], crops[:, :, ::-1], crops)
    return crops.astype(float)

  def _scale(self, pixels: jax.Array, divisor: float) -> jax.Array:
    """Divides f32[..., RGB], and orders the channels."""
    if self.channel_scale is not None:
      divisors = divisor * np.asarray(self.channel_scale)
      pixels = pixels / jnp.asarray(divisors, float)[None, None, None]
    else:
      pixels = pixels / divisor
    return pixels[..., ::-1] if self.color_order == "bgr" else pixels

  def _mean(self, offset, flip) -> jax.Array:
    """Returns what to subtract, broadcastable to f32[n, size, size, 3]."""
    if self.mean_from == "channel":
      return jnp.asarray(self.statistics.mean, float)[None, None, None]
    image = np.asarray(self.statistics.mean_image, np.float32)
    if self.mean_from == "image":
      return self._crop(jnp.asarray(image), offset, flip)
    at = (self.stored_size - self.image_size) // 2
    until = at + self.image_size
    return jnp.asarray(image[None, at:until, at:until], float)


def _draw_normal(key: jax.Array, shape: tuple[int, ...], *, spec) -> jax.Array:
  """Draws as `jax.random.normal` does in float32, also under float64.

  The uniform numbers have the same bits on every layout and in every type; the
  rounding of what follows is that of the type.
  """
  least = np.nextafter(np.float32(-1), np.float32(0))
  uniform = jax.random.uniform(
    key, shape, np.float32, least, 1.0, out_sharding=spec
  ).astype(float)
  return math.sqrt(2) * lax.erf_inv(uniform)

"""Crop, flip, color, mean: what is drawn per image, and how it is applied.

Draws are made in the global view, outside the mapped function; applying them
happens on the device that holds the image. Images cross from host to device
as the bytes that they are stored as.
"""

from __future__ import annotations

import dataclasses
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.data import statistics as statistics_lib

# What is subtracted from a crop, see `Augment.mean_from`.
MEANS = ("channel", "image", "image_center")
# Views of a test image; one of them is the center crop.
VIEWS = 10
_CENTER = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """The augmentation of 2012.

  Attributes:
    stored_size: side of the images that arrive, in pixels.
    image_size: side of the crop, in pixels, at most `stored_size`.
    flip: whether half of the images are mirrored, left to right.
    color_noise: standard deviation of the noise along each color direction,
      in units of the data's own; 0.1 in the paper. The paper's text scales by
      the variances; the released code, and we, by the standard deviations:
      variances would bleach every image.
    statistics: of the training split.
    mean_from: what is subtracted. `channel`: the mean of each channel. `image`:
      the mean image at the place of the crop, mirrored with it, as if it were
      subtracted before all else; the paper. `image_center`: the center crop of
      the mean image, from every crop, never mirrored; the released code.
    color_divisor: what training images are divided by after the noise, and
      evaluation images are not; 1 in the paper, 1.1 in the released code.
    scale: what all images are divided by; 1 in the paper.
    color_noise_steps: steps after which there is no more color noise; None:
      there always is. The draws are the same, but multiplied by 0.
  """

  stored_size: int
  image_size: int
  flip: bool
  color_noise: float
  statistics: statistics_lib.Statistics
  mean_from: str = "channel"
  color_divisor: float = 1.0
  scale: float = 1.0
  color_noise_steps: int | None = None

  def __post_init__(self):
    if self.image_size > self.stored_size:
      raise ValueError(
        f"crops of {self.image_size} pixels do not fit into images of "
        f"{self.stored_size}. Set config.network.image_size to at most "
        "config.data.stored_size."
      )
    for name in ("color_divisor", "scale"):
      if not 0 < getattr(self, name) < float("inf"):
        raise ValueError(
          f"augment.{name} is {getattr(self, name)}, expected a positive "
          f"number. Set config.augment.{name}."
        )
    if not 0 <= self.color_noise < float("inf"):
      raise ValueError(
        f"augment.color_noise is {self.color_noise}, expected 0 or more. "
        "Set config.augment.color_noise."
      )
    mean = self.statistics.mean
    if len(mean) != 3 or not all(
      isinstance(channel, numbers.Real) and 0 <= channel <= 255
      for channel in mean
    ):
      raise ValueError(
        f"augment.mean is {mean}, expected three numbers (R, G, B) of 0 to "
        "255. Set config.augment.mean."
      )
    if self.mean_from not in MEANS:
      raise ValueError(
        f"augment.mean_from is {self.mean_from!r}, expected one of "
        f"{', '.join(MEANS)}. Set config.augment.mean_from."
      )
    if self.mean_from != "channel":
      self._check_mean_image()

  def _check_mean_image(self) -> None:
    image, side = self.statistics.mean_image, self.stored_size
    if image is None:
      raise ValueError(
        f"augment.mean_from is {self.mean_from!r}, but the statistics have no "
        "mean image. Set config.augment.mean_from=channel, or "
        "config.augment.statistics=dataset and config.data.name to a set that "
        "keeps one."
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
    """Draws for a batch.

    Args:
      key: from `jax.random.key`.
      n: images in the batch, over all devices.
      spec: how the rows of the batch are split over the mesh.
      step: i32[], steps before this one; for `color_noise_steps`.

    Returns:
      offset: i32[n, 2], of the crop from the top and the left, every place
      equally likely (33 x 33 for a crop of 224 from 256). flip: bool[n].
      color: f32[n, 3], standard deviations along the color directions.
    """
    offset_key, flip_key, color_key = jax.random.split(key, 3)
    places = self.stored_size - self.image_size + 1
    color = self.color_noise
    if self.color_noise_steps is not None:
      color = jnp.where(step < self.color_noise_steps, color, 0.0)
    return {
      "offset": jax.random.randint(
        offset_key, (n, 2), 0, places, out_sharding=spec
      ),
      "flip": jax.random.bernoulli(
        flip_key, 0.5 if self.flip else 0.0, (n,), out_sharding=spec
      ),
      "color": color * jax.random.normal(color_key, (n, 3), out_sharding=spec),
    }

  def apply(self, images: jax.Array, draws: dict[str, jax.Array]) -> jax.Array:
    """Applies draws to the images of one device.

    Args:
      images: u8[n, stored_size, stored_size, 3].
      draws: as from `draw`, for these images.

    Returns:
      f32[n, image_size, image_size, 3], mean removed.
    """
    offset, flip = draws["offset"], draws["flip"]
    stds = jnp.asarray(self.statistics.stds)[:, None]
    directions = stds * jnp.asarray(self.statistics.directions)  # f32[3, RGB]
    # Accelerators would round to fewer digits.
    noise = jnp.matmul(
      draws["color"], directions, precision=lax.Precision.HIGHEST
    )[:, None, None, :]  # f32[n, 1, 1, 3]
    crops = self._cut(images, offset, flip) + noise
    return (crops - self._mean(offset, flip)) / (
      self.scale * self.color_divisor
    )

  def view(self, images: jax.Array, index: jax.Array | int) -> jax.Array:
    """One of the ten views of each image, for evaluation.

    Args:
      images: u8[n, stored_size, stored_size, 3].
      index: 0..9; the crop at the top left, top right, center, bottom left,
        bottom right, and these five mirrored, as in the released code.

    Returns:
      f32[n, image_size, image_size, 3], mean removed.

    Source: Krizhevsky et al. 2012, section 4.1.
    """
    end = self.stored_size - self.image_size
    center = (end // 2, end // 2)
    places = jnp.asarray([(0, 0), (0, end), center, (end, 0), (end, end)])
    n = images.shape[0]
    offset = jnp.broadcast_to(places[index % 5], (n, 2))
    flip = jnp.broadcast_to(index >= 5, (n,))
    crops = self._cut(images, offset, flip)
    return (crops - self._mean(offset[:1], flip[:1])) / self.scale

  def center(self, images: jax.Array) -> jax.Array:
    """The center crop of each image, for evaluation: a view."""
    return self.view(images, _CENTER)

  def _cut(self, images, offset, flip) -> jax.Array:
    """Cuts crops out of images u8[n, ...] or out of one image f32[...]."""
    size = (self.image_size, self.image_size, 3)
    # Crops stay bytes until they are cut out: a quarter of the traffic.
    crops = jax.vmap(
      lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), size),
      in_axes=(0 if images.ndim == 4 else None, 0),
    )(images, offset)
    crops = jnp.where(flip[:, None, None, None], crops[:, :, ::-1], crops)
    return crops.astype(jnp.float32)

  def _mean(self, offset, flip) -> jax.Array:
    """What is subtracted: f32[n or 1, image_size or 1, image_size or 1, 3]."""
    if self.mean_from == "channel":
      return jnp.asarray(self.statistics.mean, jnp.float32)[None, None, None]
    image = np.asarray(self.statistics.mean_image, np.float32)
    if self.mean_from == "image":
      return self._cut(jnp.asarray(image), offset, flip)
    at = (self.stored_size - self.image_size) // 2
    until = at + self.image_size
    return jnp.asarray(image[None, at:until, at:until])

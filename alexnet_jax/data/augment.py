"""Crop, flip, colour, mean: what is drawn per image, and how it is applied.

Draws are made in the global view, outside the mapped function; applying them
happens on the device that holds the image. Images cross from host to device
as the bytes that they are stored as.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

# Directions of the colours of ImageNet (rows, RGB) and the standard deviation
# along each, in grey levels 0..255. Source: cuda-convnet2, make-data,
# input_meta. The paper's text scales by the variances; the released code, and
# we, by the standard deviations: variances would bleach every image.
COLOUR_DIRECTIONS = (
  (-0.56351, -0.57618, -0.59200),
  (-0.71258, -0.02354, 0.70120),
  (0.41796, -0.81698, 0.39731),
)
COLOUR_STDS = (121.780, 37.094, 19.721)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """The augmentation of 2012.

  Attributes:
    stored_size: side of the images that arrive, in pixels.
    image_size: side of the crop, in pixels, at most `stored_size`.
    flip: whether half of the images are mirrored, left to right.
    colour_noise: standard deviation of the noise along each colour direction,
      in units of the data's own; 0.1 in the paper.
    mean: subtracted from each channel (R, G, B), 0..255.
    scale: what the difference is divided by; 1 in the paper.
  """

  stored_size: int
  image_size: int
  flip: bool
  colour_noise: float
  mean: tuple[float, float, float]
  scale: float = 1.0

  def __post_init__(self):
    if self.image_size > self.stored_size:
      raise ValueError(
        f"crops of {self.image_size} pixels do not fit into images of "
        f"{self.stored_size}. Set config.network.image_size to at most "
        "config.data.stored_size."
      )
    if self.scale <= 0:
      raise ValueError(
        f"augment.scale is {self.scale}, expected a positive number. "
        "Set config.augment.scale."
      )
    if self.colour_noise < 0:
      raise ValueError(
        f"augment.colour_noise is {self.colour_noise}, expected 0 or more. "
        "Set config.augment.colour_noise."
      )
    if len(self.mean) != 3:
      raise ValueError(
        f"augment.mean is {self.mean}, expected three numbers (R, G, B). "
        "Set config.augment.mean."
      )

  def draw(self, key: jax.Array, n: int, *, spec) -> dict[str, jax.Array]:
    """Draws for a batch.

    Args:
      key: from `jax.random.key`.
      n: images in the batch, over all devices.
      spec: how the rows of the batch are split over the mesh.

    Returns:
      offset: i32[n, 2], of the crop from the top and the left, every place
      equally likely (33 x 33 for a crop of 224 from 256). flip: bool[n].
      colour: f32[n, 3], standard deviations along the colour directions.
    """
    offset_key, flip_key, colour_key = jax.random.split(key, 3)
    places = self.stored_size - self.image_size + 1
    return {
      "offset": jax.random.randint(
        offset_key, (n, 2), 0, places, out_sharding=spec
      ),
      "flip": jax.random.bernoulli(
        flip_key, 0.5 if self.flip else 0.0, (n,), out_sharding=spec
      ),
      "colour": self.colour_noise
      * jax.random.normal(colour_key, (n, 3), out_sharding=spec),
    }

  def apply(self, images: jax.Array, draws: dict[str, jax.Array]) -> jax.Array:
    """Applies draws to the images of one device.

    Args:
      images: u8[n, stored_size, stored_size, 3].
      draws: as from `draw`, for these images.

    Returns:
      f32[n, image_size, image_size, 3], mean removed.
    """
    size = (self.image_size, self.image_size, 3)
    # Crops stay bytes until they are cut out: a quarter of the traffic.
    crops = jax.vmap(
      lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), size)
    )(images, draws["offset"])
    flip = draws["flip"][:, None, None, None]
    crops = jnp.where(flip, crops[:, :, ::-1], crops)
    stds = jnp.asarray(COLOUR_STDS)[:, None]
    directions = stds * jnp.asarray(COLOUR_DIRECTIONS)  # f32[3, RGB]
    noise = draws["colour"] @ directions  # f32[n, RGB]
    return self._normalise(crops, noise[:, None, None, :])

  def center(self, images: jax.Array) -> jax.Array:
    """The centre crop of each image, for evaluation.

    Args:
      images: u8[n, stored_size, stored_size, 3].

    Returns:
      f32[n, image_size, image_size, 3], mean removed.
    """
    at = (self.stored_size - self.image_size) // 2
    until = at + self.image_size
    crops = images[:, at:until, at:until]
    return self._normalise(crops, jnp.zeros((1, 1, 1, 3)))

  def _normalise(self, crops: jax.Array, noise: jax.Array) -> jax.Array:
    mean = jnp.asarray(self.mean, jnp.float32)[None, None, None]
    return (crops.astype(jnp.float32) + noise - mean) / self.scale

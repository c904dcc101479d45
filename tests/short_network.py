"""Configs for runs of real processes: those of configs/, on a short network.

    --config=tests/short_network.py:two_device

Three convolutions, of which one reads both columns and one its own, and two
fully connected layers, with dropout: each process compiles this in three
quarters of the time.
"""

import dataclasses
import importlib

import ml_collections

from alexnet_jax.network import catalog
from configs import default

WIRING = dataclasses.replace(
  catalog.ALEXNET_2012,
  name="short",
  layers=tuple(
    layer
    for layer in catalog.ALEXNET_2012.layers
    if layer.name in ("conv1", "conv3", "conv4", "fc6", "fc8")
  ),
)


def get_config(name: str) -> ml_collections.ConfigDict:
  """Returns the config of a file of configs/ for digits of 35 pixels."""
  config = importlib.import_module(f"configs.{name}").get_config("digits")
  shorten(config)
  return config


def shorten(config: ml_collections.ConfigDict) -> None:
  """Sets the short network, for images of 35 pixels."""
  default.use_wiring(config, WIRING)
  config.network.image_size = 35
  config.data.stored_size = 37

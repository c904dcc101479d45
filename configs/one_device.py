"""One device, the whole network on it.

    python -m alexnet_jax.main --config=configs/one_device.py
    python -m alexnet_jax.main --config=configs/one_device.py:imagenet

RESULTS
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  config = default.get_config(variant)
  config.layout.name = "one_device"
  return config

"""The split of 2012: two devices, one column on each.

    python -m alexnet_jax.main --config=configs/two_device.py
    python -m alexnet_jax.main --config=configs/two_device.py:imagenet

RESULTS
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  config = default.get_config(variant)
  config.layout.name = "two_column"
  return config

"""Two columns, twice: four devices, the batch split in two.

    python -m alexnet_jax.main --config=configs/four_device.py
    python -m alexnet_jax.main --config=configs/four_device.py:imagenet

RESULTS
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  config = default.get_config(variant)
  config.layout.name = "two_column_data"
  return config

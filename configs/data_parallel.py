"""Two devices, the whole network on each, the batch split in two.

    python -m alexnet_jax.main --config=configs/data_parallel.py
    python -m alexnet_jax.main --config=configs/data_parallel.py:imagenet

RESULTS
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  config = default.get_config(variant)
  config.layout.name = "data_parallel"
  return config

"""One device with the complete network.

    python -m alexnet_jax.main --config=configs/one_device.py
    python -m alexnet_jax.main --config=configs/one_device.py:imagenet

digits    One device (here a CPU) on two cores; 54 s with start-up.
          Validation top-1 error 2.3 % of 299 images, seed 0; other seeds and
          machines gave 1 % to 2.5 %.
imagenet  Time and result: not measured. The run of 2012 reached 40.7 % top-1,
          18.2 % top-5 error with ten views (Krizhevsky et al. 2012, table 2);
          its network was that of `two_column`.
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  config = default.get_config(variant)
  config.layout.name = "one_device"
  return config

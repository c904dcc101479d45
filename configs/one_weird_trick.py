"""One weird trick: convolutions split the batch, dense layers their features.

    python -m alexnet_jax.main --config=configs/one_weird_trick.py
    python -m alexnet_jax.main --config=configs/one_weird_trick.py:imagenet

digits    Four devices (here simulated) on two cores; 43 s with start-up.
          Validation top-1 error 1.0 % of 299 images, seed 0; other seeds and
          machines gave 1 % to 2.5 %.
imagenet  Time and result: not measured. The run of 2012 reached 40.7 % top-1,
          18.2 % top-5 error with ten views (Krizhevsky et al. 2012, table 2)
          with the columns of `two_column`; one weird trick 43.28 % top-1 with
          one view, on 8 GPUs and batches of 1,024 (Krizhevsky 2014), with
          --config.network.wiring=merged_tower.
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  config = default.get_config(variant)
  config.layout.name = "one_weird_trick"
  return config

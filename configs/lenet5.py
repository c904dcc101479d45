"""LeNet-5, which introductions put beside AlexNet, on the embedded digits.

    python -m alexnet_jax.main --config=configs/lenet5.py
    python -m alexnet_jax.complexity

One device; half a minute on two cores. Validation top-1 error 4.35 % of 299
images, seed 0. Sigmoids and average pooling, as d2l has it; images of 28 pixels
and one channel. No crops, no dropout, no decay.
"""

import ml_collections

from configs import default


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  if variant != "digits":
    raise ValueError(
      f"unknown variant {variant!r} of the config, expected digits. "
      "Set what follows ':' in --config."
    )
  config = default.get_config(variant)
  config.network.wiring = "lenet5"
  config.network.width = 1.0
  config.network.image_size = 28
  config.data.stored_size = 28
  config.augment.color_noise = 0.0
  config.optimizer.learning_rate = 0.1
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.weight_decay = 0.0
  return config

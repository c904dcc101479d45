"""The authors' schedule of a year later: exponential steps.

    python -m alexnet_jax.main --config=configs/recipes/source_2013.py
    python -m alexnet_jax.main --config=configs/recipes/source_2013.py:digits

imagenet  Two devices, one column on each. The rate falls by 250^(1/3) at 25, 50
          and 75 % of the training, from .01 to 4e-5; that of the biases once,
          by 10, at half of it. Nothing is done by hand.
          Expected: 40.53 % top-1 and 18.05 % top-5 error with ten views, 42.34
          and 19.58 with the center view (the notebook's run 170, the network of
          run 145). Time and result: not measured.
digits    The same rules in small (`default.shrink`); about a minute on two
          cores. It shows that the recipe runs, not what it reaches.
"""

import ml_collections

from configs import default


def get_config(variant: str = "imagenet") -> ml_collections.ConfigDict:
  default.check_variant(variant)
  config = default.get_config("imagenet")
  config.layout.name = "two_column"
  config.num_epochs = 90.0
  config.optimizer.schedule = "exponential"
  config.optimizer.exponential_factor = 250.0
  config.optimizer.exponential_steps = 4
  config.optimizer.drop_epochs = ()
  config.optimizer.bias_lr_multiplier = 2.0
  config.optimizer.bias_drop_epochs = (45.0,)
  config.augment.mean_from = "image_center"
  config.augment.color_divisor = 1.1
  config.validation_views = 10
  if variant == "digits":
    default.shrink(config)
  return config

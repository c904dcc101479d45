"""Natural pictures on two devices: the 48 + 48 first kernels of 2012.

    python -m alexnet_jax.main --config=configs/photos.py

photos    Two devices (here simulated), one column on each. 20 pictures, 8,000
          crops of 128 pixels (docs/data.md). Half the width of 2012, but for
          conv1; images of 115 pixels.
          2 to 2.5 minutes with start-up on two cores. Validation top-1 error
          14.9 to 26.7 % (ten seeds) of 1,000 crops from parts of the pictures
          that no training crop touches; chance is 95 % (docs/columns.md).
"""

import ml_collections

from configs import default


def get_config(variant: str = "photos") -> ml_collections.ConfigDict:
  if variant != "photos":
    raise ValueError(
      f"unknown variant {variant!r} of the config, expected photos. "
      "Set what follows ':' in --config."
    )
  config = default.get_config("digits")
  config.layout.name = "two_column"
  config.batch_size = 32
  config.num_epochs = 3.0

  config.network.image_size = 115
  config.network.num_classes = 20
  config.network.width = 0.5
  # He's standard deviations, sqrt(2 / fan-in), and no biases; conv1 has that of
  # 2012, since He's is as large as what conv1 learns, and hides it. With `init`
  # of "he" no single layer has values of its own.
  config.network.init = "source"
  config.network.layers = {
    # At half the width, the 48 + 48 kernels of 2012.
    "conv1": {"features": 192, "kernel_std": 0.01},
    "conv2": {"kernel_std": 0.041, "bias": 0.0},
    "conv3": {"kernel_std": 0.042},
    "conv4": {"kernel_std": 0.048, "bias": 0.0},
    "conv5": {"kernel_std": 0.048, "bias": 0.0},
    "fc6": {"kernel_std": 0.063, "bias": 0.0},
    "fc7": {"kernel_std": 0.031, "bias": 0.0},
    "fc8": {"kernel_std": 0.031},
  }

  config.data.name = "photos"
  config.data.stored_size = 128

  config.augment.flip = True
  # Mean and standard deviation of the pixels of the training split.
  config.augment.mean = (119.1, 102.3, 96.2)
  config.augment.scale = 60.0

  config.optimizer.drop_epochs = (2.5,)
  config.optimizer.weight_decay = 2e-3

  # An epoch.
  config.log_every_steps = 250
  config.eval_every_steps = 250
  config.checkpoint_every_steps = 250
  return config

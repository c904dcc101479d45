"""One weird trick (2014): one tower, eight devices, a batch of 1,024.

    python -m alexnet_jax.main \\
        --config=configs/recipes/one_weird_trick.py
    python -m alexnet_jax.main \\
        --config=configs/recipes/one_weird_trick.py:digits

imagenet  Eight devices: each has 128 images in the convolutions and an eighth
          of the dense layers. The rate grows with the batch, .01 for each 128
          images, and falls in exponential steps over 90 epochs.
          Expected: 43.28 % top-1 error with the center view, loss 2.678
          (Krizhevsky 2014, 8 GPUs, batch 1,024 in both parts; there 15.68 hours
          on K20s). Time and result: not measured.
digits    The same rules in small (`default.shrink`) on four devices; about a
          minute on two cores. It shows that the recipe runs, not what
          it reaches.

Softmax, as in the released files; the paper's table is with 1,000 logistic
units. Its variant that updates the dense layers after every 128 images
(42.86 %) is not built.
"""

import ml_collections

from configs import default


def get_config(variant: str = "imagenet") -> ml_collections.ConfigDict:
  default.check_variant(variant)
  config = default.get_config("imagenet")
  config.layout.name = "one_weird_trick"
  config.layout.mesh.data = 1
  config.layout.mesh.model = 8
  config.batch_size = 1024
  config.num_epochs = 90.0
  config.network.wiring = "merged_tower"
  config.network.dropout_scaling = "train"
  config.optimizer.learning_rate = 0.08
  config.optimizer.schedule = "exponential"
  config.optimizer.exponential_factor = 250.0
  config.optimizer.exponential_steps = 4
  config.optimizer.drop_epochs = ()
  config.optimizer.bias_drop_epochs = (45.0,)
  config.augment.color_divisor = 1.1
  config.eval_every_steps = 1_250
  config.checkpoint_every_steps = 250
  if variant == "digits":
    default.shrink(config)
    config.layout.mesh.model = 4
    config.optimizer.learning_rate = 0.01
  return config

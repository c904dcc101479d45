"""Batches of 32,768: layer-wise rates (LARS), a warm-up, a polynomial.

    python -m alexnet_jax.main --config=configs/recipes/large_batch.py
    python -m alexnet_jax.main --config=configs/recipes/large_batch.py:digits

imagenet  32 devices, 1,024 images on each. Where there are fewer, the same
          update from several batches: --config.layout.mesh.data=8
          --config.batch_size=8192 --config.grad_accumulation_steps=4 (batch
          normalization is then over 8,192 images).
          Batch normalization instead of response normalization, LARS with a
          trust coefficient of .001, five epochs of warm-up, then a polynomial
          of power 2, over 100 epochs (You, Gitman, Ginsburg 2017; You et al.
          2018, "ImageNet training in minutes": 100 epochs of AlexNet at 32K in
          11 minutes on 1,024 CPUs). The rate of 15 is our choice.
          Time and result: not measured.
digits    A batch of 1,024 of the 1,498 training images, two devices; about two
          minutes on two cores. Without batch normalization, docs/results.md has
          LARS beside SGD.

LARS does not adapt biases and scales to their norms; they have the base rate.
"""

import ml_collections

from configs import default


def get_config(variant: str = "imagenet") -> ml_collections.ConfigDict:
  default.check_variant(variant)
  config = default.get_config("imagenet")
  config.layout.name = "data_parallel"
  config.layout.mesh.data = 32
  config.batch_size = 32_768
  config.num_epochs = 100.0
  config.network.normalization = "batch"
  config.network.init = "he"
  config.network.dropout_scaling = "train"
  config.augment.scale = 58.0
  config.optimizer.learning_rate = 15.0
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.schedule = "polynomial"
  config.optimizer.polynomial_power = 2.0
  config.optimizer.warmup_epochs = 5.0
  config.optimizer.drop_epochs = ()
  config.optimizer.trust_coefficient = 0.001
  config.log_every_steps = 10
  config.eval_every_steps = 40
  config.checkpoint_every_steps = 40
  if variant == "digits":
    default.shrink(config)
    config.layout.mesh.data = 2
    config.batch_size = 1024
    default.shorten(config, 48.0)
    config.log_every_steps = 5
    config.eval_every_steps = 15
    config.checkpoint_every_steps = 15
  return config

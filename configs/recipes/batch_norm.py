"""Newer practice: batch normalization, cosine, EMA, smoothed labels.

    python -m alexnet_jax.main --config=configs/recipes/batch_norm.py
    python -m alexnet_jax.main --config=configs/recipes/batch_norm.py:digits

imagenet  Eight devices, the batch of 1,024 split. Batch normalization in every
          layer but the last (Ioffe and Szegedy 2015) instead of response
          normalization; a warm-up of five epochs and half a cosine instead of
          steps; an average of the parameters for validation; labels smoothed
          by .1 (Szegedy et al. 2016).
          Time and result: not measured.
          --config.optimizer.schedule=polynomial with
          --config.optimizer.polynomial_power=1 is the linear rate.
digits    The same rules in small (`default.shrink`) on two devices; about a
          minute on two cores. It shows that the recipe runs, not what
          it reaches.
"""

import ml_collections

from configs import default


def get_config(variant: str = "imagenet") -> ml_collections.ConfigDict:
  default.check_variant(variant)
  config = default.get_config("imagenet")
  config.layout.name = "data_parallel"
  config.layout.mesh.data = 8
  config.batch_size = 1024
  config.num_epochs = 90.0
  config.label_smoothing = 0.1
  config.network.normalization = "batch"
  config.network.init = "he"
  config.network.dropout_scaling = "train"
  # About unit scale: the standard deviation of natural images' pixels.
  config.augment.scale = 58.0
  # .01 for each 128 images, and what batch normalization allows above that.
  config.optimizer.learning_rate = 0.16
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_epochs = 5.0
  config.optimizer.drop_epochs = ()
  config.optimizer.ema_decay = 0.9999
  config.eval_every_steps = 1_250
  config.checkpoint_every_steps = 250
  if variant == "digits":
    default.shrink(config)
    config.layout.mesh.data = 2
    config.optimizer.learning_rate = 0.02
    # Of 562 updates, the last ten in a hundred.
    config.optimizer.ema_decay = 0.98
  return config

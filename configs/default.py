"""Every field of a config, once. Not run by itself: see the others.

    get_config("digits")    the embedded default, trained in about a minute
    get_config("imagenet")  the full-size network with the paper's numbers

Numbers marked [P] are from Krizhevsky et al. 2012, [S] from its released code
(cuda-convnet, layer-params-145.cfg), where the paper is silent or differs.
"""

import ml_collections
from ml_collections import config_dict

from alexnet_jax.partition import layout as layout_lib

VARIANTS = ("digits", "imagenet")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: there is no such variant.
  """
  check_variant(variant)
  config = imagenet()
  if variant == "digits":
    use_digits(config)
  return config


def check_variant(variant: str) -> None:
  """Refuses a variant that there is not.

  Raises:
    ValueError: names those that there are.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f"unknown variant {variant!r} of the config, expected one of "
      f"{', '.join(VARIANTS)}. Set what follows ':' in --config."
    )


def imagenet() -> ml_collections.ConfigDict:
  """Every field; values are those of the full-size run of 2012."""
  config = ml_collections.ConfigDict()

  # Of all random draws: initial weights, order, augmentation, dropout.
  config.seed = 0
  # Members of an ensemble that are trained at once, each on as many devices as
  # the layout has. Member m is the run of seed + m, with the order of seed; it
  # lies in WORKDIR/member_m. 1: a single run.
  config.ensemble = 1
  # Images in a step, over all devices. [P]
  config.batch_size = 128
  # Passes over the training split. [P] "roughly 90"
  config.num_epochs = 90.0
  # Batches whose gradients are averaged into one update; a step is one batch.
  # At the end of a run, fewer than that many change nothing.
  config.grad_accumulation_steps = 1
  # Share of each label's weight that is spread evenly over all classes in the
  # training loss, 0 <= share < 1. [P] 0
  config.label_smoothing = 0.0

  # WHERE it is computed. Never changes a number.
  config.layout = ml_collections.ConfigDict()
  # A layout of partition/catalog.py; `use_layout` sets one of your own.
  config.layout.name = "one_device"
  # Order of the mesh's axes, slowest first; None as the named layout has it,
  # and the devices put so that the axis along which most is sent is fastest.
  config.layout.axes = config_dict.placeholder(tuple)
  # Devices along each axis; None as the named layout has it.
  config.layout.mesh = ml_collections.ConfigDict()
  config.layout.mesh.data = config_dict.placeholder(int)
  config.layout.mesh.column = config_dict.placeholder(int)
  config.layout.mesh.model = config_dict.placeholder(int)
  # Placement of single layers; None as the named layout has it.
  for layer in layout_lib.LAYERS:
    placement = ml_collections.ConfigDict()
    # Axes that split the images, as ("data",).
    placement.batch = config_dict.placeholder(tuple)
    # Axes that split the features, as ("column",).
    placement.features = config_dict.placeholder(tuple)
    # gather, sum, or fewest, that of the two which sends less.
    placement.arrive = config_dict.placeholder(str)
    # Axes of batch over which the kernel is stored in shares, as ("data",).
    placement.fsdp = config_dict.placeholder(tuple)
    # Whether the own share of what is gathered is computed with while the
    # others arrive.
    placement.overlap_gather = config_dict.placeholder(bool)
    config.layout[layer] = placement
  # Train even where the step communicates otherwise than planned.
  config.layout.allow_unplanned = False

  # Type in which activations and their gradients cross devices: float32 or
  # bfloat16. The latter rounds them, so it changes results a little. [S] had
  # half precision as an option.
  config.exchange_dtype = "float32"
  # Type in which activations, convolutions and products are computed: float32
  # or bfloat16. Parameters, the optimizer, sums of gradients, normalizations
  # and the loss are float32 in either.
  config.compute_dtype = "float32"

  # WHAT is computed.
  config.network = ml_collections.ConfigDict()
  # The table of layers, and who reads what; of network/catalog.py.
  config.network.wiring = "alexnet2012"
  # Groups of feature maps, K; None as the wiring has it. [P] 2
  config.network.columns = config_dict.placeholder(int)
  # Multiplies the features of every layer but the last.
  config.network.width = 1.0
  # Side of the crop that enters conv1, pixels. [P] 224
  config.network.image_size = 224
  # Must be the number of classes of the dataset.
  config.network.num_classes = 1000
  # Share of units dropped after fc6 and fc7, 0 <= rate < 1. [P]
  config.network.dropout_rate = 0.5
  # test: outputs are multiplied by the share of units kept when evaluating [P],
  # as the initial weights of [S] assume. train: divided by it when training.
  config.network.dropout_scaling = "test"
  # relu, tanh or sigmoid, after every layer but the last; None as the wiring
  # has it. [P] relu
  config.network.activation = config_dict.placeholder(str)
  # none, column: local response normalization over the maps of a column [S], or
  # across: over those of all columns, each where the wiring normalizes; batch:
  # batch normalization before every activation. None as the wiring has it.
  config.network.normalization = config_dict.placeholder(str)
  # What local response normalization adds to the energy. [P] 2
  config.network.lrn_k = 2.0
  # What it multiplies the sum of the squares by. [P] prints 1e-4, [S] divides
  # that by the five maps of a window.
  config.network.lrn_alpha = 2e-5
  # Share of the running mean and variance that a step of a network with batch
  # normalization keeps, 0 <= momentum < 1; evaluations use these.
  config.network.batch_norm_momentum = 0.9
  # (window, stride) of every pooling, in pixels; None as the wiring has it.
  # [P] (3, 2)
  config.network.pooling = config_dict.placeholder(tuple)
  # source: standard deviations and biases of [S], for pixels of 0..255.
  # paper: the same biases, and the .01 of [P] in every layer.
  # he: sqrt(2 / fan-in) and biases of 0, for inputs of about unit scale.
  config.network.init = "source"

  config.data = ml_collections.ConfigDict()
  # digits, imagenet256/jpeg, imagenet256/raw, or an image-classification set of
  # TFDS, prepared in --data_dir.
  config.data.name = "imagenet256/jpeg"
  # Splits in TFDS's notation.
  config.data.train_split = "train"
  config.data.validation_split = "validation"
  # Side of the square that images are brought to on the host, pixels. [P]
  config.data.stored_size = 256
  # What becomes of a record that cannot be read: stop, or replace it by its
  # neighbor in the split, which is counted in the reports.
  config.data.unreadable = "stop"
  # Of the order of the training images; None: config.seed.
  config.data.seed = config_dict.placeholder(int)
  # Threads that read and decode in each process; None: one for each of its
  # cores, up to 16.
  config.data.threads = config_dict.placeholder(int)
  # Batches on the devices before they are asked for.
  config.data.batches_ahead = 2

  config.augment = ml_collections.ConfigDict()
  # Mirror half of the training images. [P]
  config.augment.flip = True
  # Standard deviation of the color noise. [P] 0.1
  config.augment.color_noise = 0.1
  # Epoch at which the color noise ends; None: never [P]. [S] 67 of 91
  config.augment.color_noise_until_epoch = config_dict.placeholder(float)
  # Means, and directions and standard deviations of the colors. dataset: those
  # kept with the set, of its training split [P]. published: those of [S].
  config.augment.statistics = "dataset"
  # Mean of each channel, R G B, 0..255, in the place of the statistics'; None
  # as they have it.
  config.augment.mean = config_dict.placeholder(tuple)
  # channel: subtract the mean of each channel. image: the mean image at the
  # place of the crop [P]. image_center: its center crop from every crop [S].
  # A mean per channel made no difference (the authors' run 136).
  config.augment.mean_from = "channel"
  # What training images are divided by after the color noise, and evaluation
  # images are not. [P] 1, [S] 1.1
  config.augment.color_divisor = 1.0
  # What all images are divided by after the mean is subtracted. [P] 1
  config.augment.scale = 1.0

  config.optimizer = ml_collections.ConfigDict()
  # Of the kernels, at the start. [P]
  config.optimizer.learning_rate = 0.01
  # steps: drops at drop_epochs [S]. plateau: drops when the validation error
  # stops improving [P]. exponential, polynomial, cosine: falls until the end of
  # the run, whose length is then no longer free.
  config.optimizer.schedule = "steps"
  # Epochs over which any of these rises linearly from 0; 0: none. polynomial
  # and cosine fall from then on, the others as if there were none.
  config.optimizer.warmup_epochs = 0.0
  # steps: epochs at which the rate is multiplied by drop_factor. [S]; [P] three
  # drops.
  config.optimizer.drop_epochs = (25.0, 51.0, 79.0)
  # steps, plateau, and biases; 0 < factor <= 1. [P]
  config.optimizer.drop_factor = 0.1
  # plateau: validations in a row without improvement that make a drop.
  config.optimizer.plateau_patience = 5
  # plateau: by how much the top-1 error must fall below the lowest so far to
  # be an improvement; a share of the images, above 0.
  config.optimizer.plateau_min_change = 1e-3
  # plateau: drops, after which the rate stays. [P] 3
  config.optimizer.plateau_max_drops = 3
  # exponential: what the rate is divided by in all, 1 or more. 250 in
  # cuda-convnet2.
  config.optimizer.exponential_factor = 250.0
  # exponential: rates of equal length, 4 in cuda-convnet2; None: smoothly.
  config.optimizer.exponential_steps = config_dict.placeholder(int)
  # polynomial: power of the share of the training that is left.
  config.optimizer.polynomial_power = 2.0
  # polynomial, cosine: rate at the end, in rates at the start, 0 to 1.
  config.optimizer.end_rate = 0.0
  # Rate of the biases, in rates of the kernels. [S]
  config.optimizer.bias_lr_multiplier = 2.0
  # steps, exponential: epochs at which the rate of the biases is multiplied by
  # drop_factor; under the other schedules it falls with that of the kernels.
  # [S] none in this run. With exponential, cuda-convnet2 has half the epochs.
  config.optimizer.bias_drop_epochs = ()
  # (epoch, rate) pairs: from that epoch on, conv1's kernel has that rate and
  # its bias bias_lr_multiplier times that; at a rate of 0, conv1 does not
  # change. Not
  # with plateau. [P] none, [S] ((67.0, 1e-5), (72.0, 0.0)) of 91
  config.optimizer.conv1_rates = ()
  # [P]
  config.optimizer.momentum = 0.9
  # Of the kernels only. [P]
  config.optimizer.weight_decay = 5e-4
  # Layer-wise adaptive rates (LARS) for large batches: what the ratio of a
  # kernel's norm to that of its gradient is multiplied by, as 0.001; None: off.
  config.optimizer.trust_coefficient = config_dict.placeholder(float)
  # Validate with an average of the parameters, which keeps this share of
  # itself in each update, as 0.999; None: with the parameters.
  config.optimizer.ema_decay = config_dict.placeholder(float)

  # Steps between two lines of metrics.jsonl.
  config.log_every_steps = 100
  # Steps between two validations; there is one at the end in any case.
  config.eval_every_steps = 10_000
  # Views of an image in a validation: 1, the center crop, or 10, the ten views
  # of [P], whose softmax outputs are averaged.
  config.validation_views = 1
  # Steps between two checkpoints; there is one at the end in any case.
  config.checkpoint_every_steps = 2_000
  # Newest checkpoints to keep, 1 or more; two are kept at least, as a loss of
  # power may damage the newest.
  config.max_to_keep = 3
  # Checkpoints of lowest validation error to keep too, 0 or more; of those that
  # were saved right after a validation.
  config.keep_best = 1
  # Steps of which each multiple that is saved is kept too; None: of none.
  config.keep_every_steps = config_dict.placeholder(int)
  return config


def shrink(config: ml_collections.ConfigDict) -> None:
  """Brings a recipe for ImageNet down to the embedded digits.

  What `use_digits` sets, and what the recipe does at some epoch at the same
  share of the training. The mean is one for each channel: the digits keep no
  mean image.
  """
  drop_epochs, num_epochs = config.optimizer.drop_epochs, config.num_epochs
  use_digits(config)
  epochs = config.num_epochs
  config.optimizer.drop_epochs, config.num_epochs = drop_epochs, num_epochs
  shorten(config, epochs)
  config.augment.mean_from = "channel"
  # About two epochs, of 23 steps each.
  config.eval_every_steps = 50


def shorten(config: ml_collections.ConfigDict, num_epochs: float) -> None:
  """Trains for so long, with all that happens at some epoch at its share."""
  rule, augment = config.optimizer, config.augment
  share = num_epochs / config.num_epochs
  config.num_epochs = num_epochs
  rule.warmup_epochs *= share
  rule.drop_epochs = tuple(share * epoch for epoch in rule.drop_epochs)
  rule.bias_drop_epochs = tuple(
    share * epoch for epoch in rule.bias_drop_epochs
  )
  rule.conv1_rates = tuple(
    (share * epoch, rate) for epoch, rate in rule.conv1_rates
  )
  if augment.color_noise_until_epoch is not None:
    augment.color_noise_until_epoch *= share


def use_layout(config: ml_collections.ConfigDict, layout) -> None:
  """Gives a config a layout of its own.

  Args:
    config: the config to change.
    layout: a `Layout` (see alexnet_jax/partition/catalog.py) under a name that
      the catalog does not have.
  """
  config.layout.mesh = ml_collections.ConfigDict()
  config.layout.update(layout_lib.to_fields(layout))


def use_digits(config: ml_collections.ConfigDict) -> None:
  """Sets what the embedded default has otherwise than the run of 2012.

  A quarter of the width and images of 67 pixels fit two CPU cores. The initial
  weights of 2012 are made for pixels of 0..255 and a million images: with them
  a run this short stays at chance. With He scaling and inputs of about unit
  scale, the paper's own rate learns from the first epoch.
  """
  config.batch_size = 64
  config.num_epochs = 24.0

  config.network.width = 0.25
  config.network.image_size = 67
  config.network.num_classes = 10
  config.network.init = "he"

  config.data.name = "digits"
  config.data.stored_size = 77

  # A mirrored digit is another sign.
  config.augment.flip = False
  config.augment.statistics = "published"
  # Mean and standard deviation of the pixels of the training split.
  config.augment.mean = (77.0, 77.0, 77.0)
  config.augment.scale = 90.0

  config.optimizer.drop_epochs = (18.0,)

  config.log_every_steps = 50
  config.eval_every_steps = 200
  config.checkpoint_every_steps = 200

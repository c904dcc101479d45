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
  if variant not in VARIANTS:
    raise ValueError(
      f"unknown variant {variant!r} of the config, expected one of "
      f"{', '.join(VARIANTS)}. Set what follows ':' in --config."
    )
  config = imagenet()
  if variant == "digits":
    use_digits(config)
  return config


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
    # gather or sum.
    placement.arrive = config_dict.placeholder(str)
    # Axes of batch over which the kernel is stored in shares, as ("data",).
    placement.stored = config_dict.placeholder(tuple)
    config.layout[layer] = placement
  # Train even where the step communicates otherwise than planned.
  config.layout.allow_unplanned = False

  # Type in which activations and their gradients cross devices: float32 or
  # bfloat16. The latter rounds them, so it changes results a little. [S] had
  # half precision as an option.
  config.exchange_precision = "float32"

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
  # source: standard deviations and biases of [S], for pixels of 0..255.
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
  # neighbour in the split, which is counted in the reports.
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
  # Standard deviation of the colour noise. [P] 0.1
  config.augment.colour_noise = 0.1
  # Means, and directions and standard deviations of the colours. dataset: those
  # kept with the set, of its training split [P]. published: those of [S].
  config.augment.statistics = "dataset"
  # Mean of each channel, R G B, 0..255, in the place of the statistics'; None
  # as they have it.
  config.augment.mean = config_dict.placeholder(tuple)
  # channel: subtract the mean of each channel. image: the mean image at the
  # place of the crop [P]. image_center: its centre crop from every crop [S].
  # A mean per channel made no difference (the authors' run 136).
  config.augment.mean_from = "channel"
  # What training images are divided by after the colour noise, and evaluation
  # images are not. [P] 1, [S] 1.1
  config.augment.colour_divisor = 1.0
  # What all images are divided by after the mean is subtracted. [P] 1
  config.augment.scale = 1.0

  config.optimizer = ml_collections.ConfigDict()
  # Of the kernels, at the start. [P]
  config.optimizer.learning_rate = 0.01
  # Epochs at which it is multiplied by drop_factor. [S]; [P] three drops.
  config.optimizer.drop_epochs = (25.0, 51.0, 79.0)
  config.optimizer.drop_factor = 0.1
  # Rate of the biases, in rates of the kernels. [S]
  config.optimizer.bias_rate = 2.0
  # Epochs at which the rate of the biases drops. [S] none in this run.
  config.optimizer.bias_drop_epochs = ()
  # [P]
  config.optimizer.momentum = 0.9
  # Of the kernels only. [P]
  config.optimizer.weight_decay = 5e-4

  # Steps between two lines of metrics.jsonl.
  config.report_every_steps = 100
  # Steps between two validations; there is one at the end in any case.
  config.validate_every_steps = 10_000
  # Views of an image in a validation: 1, the centre crop, or 10, the ten views
  # of [P], whose softmax outputs are averaged.
  config.validation_views = 1
  # Steps between two checkpoints; there is one at the end in any case.
  config.checkpoint_every_steps = 2_000
  # Newest checkpoints to keep.
  config.keep_checkpoints = 3
  return config


def use_layout(config: ml_collections.ConfigDict, layout) -> None:
  """Gives a config a layout of its own.

  Args:
    config: the config to change.
    layout: a `Layout` (see alexnet_jax/partition/catalog.py) under a name that
      the catalogue does not have.
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

  config.report_every_steps = 50
  config.validate_every_steps = 200
  config.checkpoint_every_steps = 200

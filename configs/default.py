"""Every field of a config, once. Other configs start from this one.

    get_config("digits")    the embedded default, trains in about a minute
    get_config("imagenet")  the full-size network with the paper's numbers

Sources of numbers: [P] Krizhevsky et al. 2012; [S] its released code
(cuda-convnet, layer-params-145.cfg), where the paper is silent or differs.
alexnet_jax/settings/fields.py checks the values. On the command line,
`--config.FIELD=None` unsets a field that may be None.
"""

import ml_collections
from ml_collections import config_dict

from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import settings

VARIANTS = ("digits", "imagenet")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """Returns the config of a variant.

  Raises:
    ValueError: there is no such variant.
  """
  check_variant(variant)
  config = imagenet()
  if variant == "digits":
    use_digits(config)
  return config


def check_variant(variant: str) -> None:
  if variant not in VARIANTS:
    raise ValueError(
      f"unknown variant {variant!r} of the config, expected one of "
      f"{', '.join(VARIANTS)}. Set what follows ':' in --config."
    )


def imagenet() -> ml_collections.ConfigDict:
  """Returns every field, with the values of the full-size run of 2012."""
  config = ml_collections.ConfigDict()

  # Seed of all random numbers: initial weights, order of the images,
  # augmentation, dropout. 0 to 2^32 - 1.
  config.seed = 0
  # Members of an ensemble, trained at once by a single process, each on as many
  # devices as the layout has. Member m is the run of seed + m with the order of
  # `seed`, in WORKDIR/member_m. 1: a single run.
  config.ensemble = 1
  # Images in a step, over all devices, >= 1. [P]
  config.batch_size = 128
  # Passes over the training split, > 0. [P] "roughly 90"
  config.num_epochs = 90.0
  # Steps (one batch each) whose gradients are averaged into one update, >= 1. A
  # smaller number of steps at the end of a run changes nothing.
  config.grad_accumulation_steps = 1
  # Fraction of each label's weight that is spread evenly over all classes in
  # the training loss, 0 <= x < 1. [P] 0
  config.label_smoothing = 0.0

  # WHERE it is computed. A layout does not change the numbers, except for
  # rounding.
  config.layout = ml_collections.ConfigDict()
  # A layout of partition/catalog.py; `use_layout` sets a layout of your own.
  config.layout.name = "one_device"
  # Order of the mesh axes, slowest first, such as ("data", "column"). None: the
  # order of the named layout, with the devices arranged so that the axis that
  # carries the most bytes is the fastest.
  config.layout.axes = config_dict.placeholder(tuple)
  # Devices along each axis, >= 1; None: as in the named layout.
  config.layout.mesh = ml_collections.ConfigDict()
  config.layout.mesh.data = config_dict.placeholder(int)
  config.layout.mesh.column = config_dict.placeholder(int)
  config.layout.mesh.model = config_dict.placeholder(int)
  config.layout.mesh.x = config_dict.placeholder(int)
  config.layout.mesh.y = config_dict.placeholder(int)
  # Placement of every convolution and of every fully connected layer; None: as
  # in the named layout. A single layer has a group of its own, which overrides
  # these: --config.layout.fc7.inputs="('model',)", or in a config file
  # config.layout.fc7 = {"inputs": ("model",)}. An axis that splits one
  # dimension no longer splits another. In a layout of your own every field has
  # a value: single layers with placements of their own keep these, whatever is
  # set for their kind, and an axis that is set in one field must be taken out
  # of the other: --config.layout.fc.outputs="()".
  for kind in layout_lib.KINDS:
    placement = ml_collections.ConfigDict()
    # Mesh axes that split the images, such as ("data",).
    placement.batch = config_dict.placeholder(tuple)
    # Mesh axes that split the output features, such as ("column",); each device
    # reads all that the layer reads.
    placement.outputs = config_dict.placeholder(tuple)
    # Mesh axes that split the input features; partial sums are added.
    placement.inputs = config_dict.placeholder(tuple)
    # Mesh axes that split the outputs or the inputs, whichever makes a step
    # send the fewest bytes, in all layers and both directions.
    placement.features = config_dict.placeholder(tuple)
    # Axes of `batch` over which the kernel is sharded in memory (FSDP), such as
    # ("data",).
    placement.fsdp = config_dict.placeholder(tuple)
    # Compute with the local shard while the all-gather of the others is in
    # flight: True or False.
    placement.overlap_gather = config_dict.placeholder(bool)
    config.layout[kind] = placement
  # Train even if the step communicates otherwise than planned: True or False.
  config.layout.allow_unplanned = False

  # Type in which activations and their gradients cross devices: float32, or
  # bfloat16, which rounds them and so changes results a little. [S] had half
  # precision as an option.
  config.exchange_dtype = "float32"
  # Type of activations, convolutions and matrix products: float32 or bfloat16.
  # Parameters, the optimizer, sums of gradients, normalizations and the loss
  # are always float32.
  config.compute_dtype = "float32"

  # WHAT is computed.
  config.network = ml_collections.ConfigDict()
  # A table of layers and their inputs, of network/catalog.py; `use_wiring` sets
  # one of your own.
  config.network.wiring = "alexnet2012"
  # Names of all layers of a wiring of your own, first to last; None: the wiring
  # is one of the catalog.
  config.network.order = config_dict.placeholder(tuple)
  # Rows by the names of the layers, with the fields of `wiring.Layer`. They
  # change a wiring of the catalog: --config.network.layers.conv4.features=192,
  # --config.network.layers.conv1.pool.window=3; pool.kind=none: no pooling. In
  # a config file, config.network.layers.conv4 = {"features": 192}. None: as in
  # the wiring. For a wiring of your own, `use_wiring` sets all of them.
  config.network.layers = ml_collections.ConfigDict()
  # Groups of feature maps, >= 1; None: as in the wiring. [P] 2
  config.network.columns = config_dict.placeholder(int)
  # Channels of the image: 3, or 1, the mean of the three; None: as in the
  # wiring.
  config.network.image_channels = config_dict.placeholder(int)
  # Multiplies the number of features of every layer but the last, > 0.
  config.network.width = 1.0
  # Side of the crop that enters the first layer, pixels. [P] 224
  config.network.image_size = 224
  # Number of classes; None: that of the data set, where a command opens it
  # (main, bench, doctor), which config.json then has. [P] 1000
  config.network.num_classes = config_dict.FieldReference(1000)
  # Fraction of values dropped after the layers that have dropout and no rate of
  # their own, 0 <= x < 1. [P] fc6 and fc7
  config.network.dropout_rate = 0.5
  # test: multiply outputs by the fraction of kept units when evaluating [P], as
  # the initial weights of [S] assume. train: divide by it when training.
  config.network.dropout_scaling = "test"
  # relu, tanh or sigmoid, after every layer but the last; None: as in the
  # wiring. [P] relu
  config.network.activation = config_dict.placeholder(str)
  # none; column: local response normalization over the maps of a column [S];
  # across: over the maps of all columns; map: over the neighbors in the same
  # map; these three act where the wiring normalizes. batch: batch normalization
  # before every activation. None: as in the wiring.
  config.network.normalization = config_dict.placeholder(str)
  # Constant k of local response normalization in all layers, > 0: that of
  # `lrn`, not of a second one, `map_lrn`. None: as in the wiring. [P] 2
  config.network.lrn_k = config_dict.placeholder(float)
  # Factor alpha of the plain sum of squares in all layers, > 0, likewise of
  # `lrn` alone; None: as in the wiring. [P] prints 1e-4; [S] divides that by
  # the five maps of a window.
  config.network.lrn_alpha = config_dict.placeholder(float)
  # Fraction of the running mean and variance that a step keeps under batch
  # normalization, 0 <= x < 1; evaluations use these.
  config.network.batch_norm_momentum = 0.9
  # (window, stride) of all pooling, pixels; None: as in the wiring. [P] (3, 2)
  config.network.pooling = config_dict.placeholder(tuple)
  # source: standard deviations and biases of [S], for pixels of 0..255.
  # paper: the same biases, and the .01 of [P] in every layer.
  # he: sqrt(2 / fan-in) and biases of 0, for inputs of about unit scale.
  config.network.init = "source"

  config.data = ml_collections.ConfigDict()
  # digits, photos, imagenet256/jpeg, imagenet256/raw, or an
  # image-classification dataset of TFDS that is prepared in --data_dir.
  config.data.name = "imagenet256/jpeg"
  # Splits in TFDS's notation, such as train[:90%].
  config.data.train_split = "train"
  config.data.validation_split = "validation"
  # Side of the square that the host resizes images to, pixels. [P]
  config.data.stored_size = 256
  # What to do with a record that cannot be read: stop, or replace it by its
  # neighbor in the split; reports count the replaced ones.
  config.data.unreadable = "stop"
  # Seed of the order of the training images; None: config.seed.
  config.data.seed = config_dict.placeholder(int)
  # Threads of each process that read and decode; None: one for each of its
  # cores, up to 16.
  config.data.threads = config_dict.placeholder(int)
  # Batches to transfer to the devices in advance, >= 1.
  config.data.batches_ahead = 2

  config.augment = ml_collections.ConfigDict()
  # Mirror half of the training images: True or False. [P]
  config.augment.flip = True
  # Standard deviation of the color noise, in units of that of the data's own
  # color directions, >= 0. [P] 0.1
  config.augment.color_noise = 0.1
  # Epoch at which the color noise ends; None: never [P]. [S] 67 of 91
  config.augment.color_noise_until_epoch = config_dict.placeholder(float)
  # Source of the mean and the color directions. dataset: the dataset's own, of
  # its training split [P]. published: those of [S].
  config.augment.statistics = "dataset"
  # Mean of the channels (R, G, B), 0..255; None: that of the statistics.
  config.augment.mean = config_dict.placeholder(tuple)
  # What is subtracted. channel: the mean of each channel. image: the mean image
  # at the position of the crop [P]. image_center: its center crop from every
  # crop [S]. A mean per channel made no difference (the authors' run 136).
  config.augment.mean_from = "channel"
  # Divides training images after the color noise, but no evaluation images,
  # > 0. [P] 1, [S] 1.1
  config.augment.color_divisor = 1.0
  # Divides all images after the mean is subtracted, > 0. [P] 1
  config.augment.scale = 1.0
  # Divides each channel (R, G, B) as well, > 0; None: [P], as (1, 1, 1).
  # torchvision's networks: (58.395, 57.12, 57.375) with a scale of 1.
  config.augment.channel_scale = config_dict.placeholder(tuple)
  # Order of the channels that the network gets: rgb [P], or bgr, as Caffe's
  # networks. Means and scales are R, G, B in either case.
  config.augment.color_order = "rgb"

  # Where the parameters come from.
  config.init_from = ml_collections.ConfigDict()
  # Workdir of a run, also an imported one, whose parameters this run starts
  # with; None: all are drawn. Layers are taken by name; averaged parameters if
  # that run has some. Read once: a resumed run needs its own workdir only.
  config.init_from.workdir = config_dict.placeholder(str)
  # Step of its checkpoint, >= 0; None: the newest.
  config.init_from.step = config_dict.placeholder(int)
  # Names of the layers that are drawn anew, such as ("fc8",). All that do not
  # fit have to be here.
  config.init_from.leave_out = ()
  # new: the momentum starts at 0. keep: that of the layers that are taken.
  # Schedules start at 0 with both.
  config.init_from.optimizer = "new"

  config.optimizer = ml_collections.ConfigDict()
  # Initial learning rate of the kernels, >= 0. [P]
  config.optimizer.learning_rate = 0.01
  # steps: drops at drop_epochs [S]. plateau: drops when the validation error
  # stops improving [P]. exponential, polynomial, cosine: falls until the end of
  # the run; num_epochs may then not change when the run is resumed.
  config.optimizer.schedule = "steps"
  # Epochs over which the rate of any schedule rises linearly from 0; 0: none.
  # polynomial and cosine start after them, the others at 0.
  config.optimizer.warmup_epochs = 0.0
  # steps: epochs at which the rate is multiplied by drop_factor, rising. [S];
  # [P] three drops.
  config.optimizer.drop_epochs = (25.0, 51.0, 79.0)
  # steps, plateau, and biases: factor of a drop, 0 < x <= 1, plateau < 1. [P]
  config.optimizer.drop_factor = 0.1
  # plateau: successive validations without improvement before a drop, >= 1.
  config.optimizer.plateau_patience = 5
  # plateau: decrease of the top-1 error below the lowest so far that counts as
  # an improvement, as a fraction of the images, 0 < x < 1.
  config.optimizer.plateau_min_change = 1e-3
  # plateau: number of drops, >= 0. [P] 3
  config.optimizer.plateau_max_drops = 3
  # exponential: initial rate over final rate, >= 1. 250 in cuda-convnet2.
  config.optimizer.exponential_factor = 250.0
  # exponential: number of constant rates of equal length, >= 2; None: the rate
  # falls smoothly. 4 in cuda-convnet2.
  config.optimizer.exponential_steps = config_dict.placeholder(int)
  # polynomial: power of the remaining fraction of the training, > 0.
  config.optimizer.polynomial_power = 2.0
  # polynomial, cosine: final rate over initial rate, 0 to 1.
  config.optimizer.end_rate = 0.0
  # Learning rate of the biases over that of the kernels, >= 0. [S]
  config.optimizer.bias_lr_multiplier = 2.0
  # steps, exponential: epochs at which the rate of the biases is multiplied by
  # drop_factor, rising; with other schedules it falls as that of the kernels.
  # [S] none in this run; cuda-convnet2, with exponential, half the epochs.
  config.optimizer.bias_drop_epochs = ()
  # What differs in single layers, by their names:
  # --config.optimizer.layers.conv1.lr_multiplier=0.1; in a config file,
  # config.optimizer.layers.conv1 = {"lr_multiplier": 0.1}. The fields of a
  # layer, which may be None:
  #   lr_multiplier  multiplies the rates of kernel, bias and scale, >= 0. 0
  #                  freezes the layer for the whole run: no gradients of it are
  #                  computed or sent, nor below the lowest layer that is
  #                  trained. None: 1.
  #   rates          (epoch, rate) pairs, rising: from that epoch on the kernel
  #                  has this rate, which lr_multiplier does not change, and the
  #                  bias bias_lr_multiplier times this rate. At rate 0 neither
  #                  changes, nor their velocity. Not with plateau. [P] none,
  #                  [S] conv1: ((67.0, 1e-5), (72.0, 0.0)) of 91
  #   weight_decay   of the kernel, >= 0. None: that of all layers.
  config.optimizer.layers = ml_collections.ConfigDict()
  # 0 <= x < 1. [P]
  config.optimizer.momentum = 0.9
  # Weight decay of the kernels, >= 0; biases have none. [P]
  config.optimizer.weight_decay = 5e-4
  # Layer-wise adaptive rates (LARS) for large batches: factor of the ratio of a
  # kernel's norm to its gradient's norm, > 0, such as 0.001; None: off.
  config.optimizer.trust_coefficient = config_dict.placeholder(float)
  # Decay of an exponential moving average of the parameters, which validations
  # use, 0 <= x < 1, such as 0.999; None: off.
  config.optimizer.ema_decay = config_dict.placeholder(float)

  # Steps between two lines of metrics.jsonl, >= 1.
  config.log_every_steps = 100
  # Steps between two validations, >= 1; the last step always has one.
  config.eval_every_steps = 10_000
  # Views of an image in a validation: 1, the center crop, or 10, the ten views
  # of [P], whose softmax outputs are averaged; without `augment.flip` only the
  # five that are not mirrored.
  config.validation_views = 1
  # Steps between two checkpoints, >= 1; the last step always has one.
  config.checkpoint_every_steps = 2_000
  # Newest checkpoints to keep, >= 1; at least two are kept, because a loss of
  # power may damage the newest.
  config.max_to_keep = 3
  # Checkpoints of lowest validation error to keep as well, >= 0; only those
  # saved right after a validation count.
  config.keep_best = 1
  # Keep the checkpoints at multiples of this many steps as well, a multiple of
  # checkpoint_every_steps; None: none.
  config.keep_every_steps = config_dict.placeholder(int)
  return config


def shrink(config: ml_collections.ConfigDict) -> None:
  """Reduces a recipe for ImageNet to the embedded digits.

  Sets what `use_digits` sets, and moves every epoch of the recipe to the same
  fraction of the training. The mean is per channel: the digits have no mean
  image.
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
  """Sets num_epochs, and scales all other epochs of the config with it."""
  rule, augment = config.optimizer, config.augment
  scale = num_epochs / config.num_epochs
  config.num_epochs = num_epochs
  rule.warmup_epochs *= scale
  rule.drop_epochs = tuple(scale * epoch for epoch in rule.drop_epochs)
  rule.bias_drop_epochs = tuple(
    scale * epoch for epoch in rule.bias_drop_epochs
  )
  for layer in rule.layers.values():
    if layer.to_dict().get("rates"):
      layer.rates = tuple((scale * epoch, rate) for epoch, rate in layer.rates)
  if augment.color_noise_until_epoch is not None:
    augment.color_noise_until_epoch *= scale


def use_layout(
  config: ml_collections.ConfigDict, layout: layout_lib.Layout
) -> None:
  """Sets a layout that is not in the catalog.

  Args:
    config: the config to change.
    layout: a `Layout` (see alexnet_jax/partition/catalog.py) under a name that
      the catalog does not have.

  Raises:
    ValueError: it is no layout, or a layer or an axis has a name that a config
      cannot have.
  """
  _check_type(layout, layout_lib.Layout)
  settings.check_names("a layer", layout.layers)
  settings.check_names("a mesh axis", layout.mesh)
  values = layout_lib.to_fields(layout)
  for name in list(config.layout):
    if name not in layout_lib.FIELDS:
      del config.layout[name]  # of a layout that was set before
  config.layout.mesh = ml_collections.ConfigDict()
  config.layout.update(values)


def use_wiring(
  config: ml_collections.ConfigDict, wiring: wiring_lib.Wiring
) -> None:
  """Sets a wiring that is not in the catalog.

  Also its columns and the channels of its image, and a width of 1, so that the
  layers have the features of their rows. The last one has as many as there are
  classes; these and the side of the image are those of the config, as they
  belong to the data.

  Args:
    config: the config to change.
    wiring: a `Wiring` (see alexnet_jax/network/catalog.py) under a name that
      the catalog does not have.

  Raises:
    ValueError: the wiring is no network, or a layer has a name that a config
      cannot have.
  """
  _check_type(wiring, wiring_lib.Wiring)
  wiring_lib.check(wiring)
  settings.check_names("a layer", [row.name for row in wiring.layers])
  config.network.layers = ml_collections.ConfigDict()
  config.network.update(settings.to_fields(wiring))


def _check_type(value: object, expected: type) -> None:
  if not isinstance(value, expected):
    word = expected.__name__
    field = {"Layout": "layout.name", "Wiring": "network.wiring"}[word]
    raise ValueError(
      f"use_{word.lower()} got {wiring_lib.shorten(value)}, expected a {word}. "
      f"Write {word}(name='mine', ...); config.{field} sets one of the catalog."
    )


def use_digits(config: ml_collections.ConfigDict) -> None:
  """Sets the fields in which the embedded default differs from the 2012 run.

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

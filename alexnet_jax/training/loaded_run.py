"""A trained run as an object: predict, look inside, take the parameters.

`alexnet_jax.load` makes it from a workdir alone, which has all that it needs:
config, class names, statistics of the pixels, checkpoints. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

import alexnet_jax
from alexnet_jax.checkpoints import metadata, reader, reports
from alexnet_jax.data import augment, pictures
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import eval_step
from alexnet_jax.program import program as program_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import run_data, trained_run

# Pictures that the devices compute at once; a multiple of what they split.
MAX_BATCH = 32
# Classes that a `repr` shows.
_SHOWN = 3
# What can be set of the layout of an evaluation, in errors.
_LAYOUT_FLAGS = r"--layout(, --mesh or --batch_size| or --mesh)"
# Flags of commands, in errors, and the arguments of `load` that they are.
_ARGUMENTS = {
  "--layout": "layout",
  "--checkpoint_step": "step",
  "--workdir": "workdir",
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
  """The most probable classes of a picture.

  Attributes:
    name: of the picture.
    classes: (class name, probability) pairs, the most probable first.
  """

  name: str
  classes: tuple[tuple[str, float], ...]

  def __repr__(self) -> str:
    shown = [f"{name} {share:.1%}" for name, share in self.classes[:_SHOWN]]
    more = ["..."] if self.classes[_SHOWN:] else []
    return f"<{self.name}: {', '.join(shown + more)}>"


class LoadedRun:
  """A trained run; `load` makes it.

  `images` are an array u8[h, w, 3], u8[h, w] or u8[N, h, w, 3], a file, a
  folder, or a list of such, of any sizes; or what `pictures.read_pictures` has
  made of them. Pictures are prepared as those of the run's validations: scaled
  to `data.stored_size` pixels, of which the center is cropped.

  Attributes:
    workdir: of the run.
    step: of its checkpoint.
    config: of the run, all fields.
    network: its layers.
    class_names: by label.
    program: the network on the layout that was asked for.
    trained: the run as it was read.
  """

  def __init__(
    self,
    run: trained_run.TrainedRun,
    *,
    class_names: tuple[str, ...],
    program: program_lib.Program,
  ):
    self.workdir, self.step, self.trained = run.workdir, run.step, run
    self.config, self.network = run.stored, run.network
    self.class_names, self.program = class_names, program
    self._variables = load_variables(run, program)
    self._computed: dict[tuple, Callable[[jax.Array], Any]] = {}

  def __repr__(self) -> str:
    network, layout = self.network, self.program.layout
    return (
      f"<run {self.workdir!r}, step {self.step}: {network.name}, "
      f"{network.image_size} pixels, {len(self.class_names):,} classes, layout "
      f"{layout.name} ({layout_lib.format_mesh(layout.mesh)})>"
    )

  def predict(
    self, images: Any, top: int = 5, *, views: int = 1
  ) -> list[Prediction]:
    """Predicts the classes of pictures, in their order.

    Args:
      top: number of classes of each picture, >= 1; at most all are given.
      views: see `probabilities`.

    Raises:
      ValueError, TypeError, FloatingPointError: see `probabilities`.
    """
    is_integer = isinstance(top, int | np.integer) and not isinstance(top, bool)
    if not is_integer or top < 1:
      raise ValueError(f"top is {top!r}, expected an integer >= 1. Set top.")
    found = self.read_pictures(images)
    probabilities = self.probabilities(found, views=views)
    # Of equal ones the lower class is first, as in `metrics.ranks`.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
      Prediction(
        name=name,
        classes=tuple(
          (self.class_names[label], float(row[label])) for label in labels
        ),
      )
      for name, row, labels in zip(
        found.names, probabilities, order, strict=True
      )
    ]

  def probabilities(self, images: Any, *, views: int = 1) -> np.ndarray:
    """Computes the softmax of the logits: f32[N, classes].

    Args:
      views: of each picture: 1, the center crop, or 10, the views of the paper,
        whose probabilities are averaged; 5 of these for a run that mirrored no
        images.

    Raises:
      ValueError, TypeError: a picture cannot be read, or there is no such
        number of views.
      FloatingPointError: an output is not finite.
    """
    if isinstance(views, bool) or views not in (1, augment.VIEWS):
      raise ValueError(
        f"views is {views!r}, expected 1 or {augment.VIEWS}. Set views."
      )
    found = self.read_pictures(images)

    def make() -> Callable[[jax.Array], jax.Array]:
      most = self.program.augmentation.num_views
      program = dataclasses.replace(self.program, views=min(views, most))

      def compute(images) -> jax.Array:
        labels = jax.device_put(
          np.zeros(len(images), np.int32), program.batch_shardings[1]
        )
        return program.predict(self._variables, images, labels)[0]

      return compute

    log_probabilities = self._compute(("views", views), make, found)
    return np.exp(log_probabilities)

  def logits(self, images: Any) -> np.ndarray:
    """Computes the outputs of the last layer: f32[N, classes].

    Raises:
      ValueError, TypeError, FloatingPointError: see `probabilities`.
    """
    return self.activations(images, self.network.layers[-1].name)

  def activations(
    self, images: Any, layer: str, pooled: bool = True
  ) -> np.ndarray:
    """Computes what a layer gives the next one, for the center crops.

    With `dropout_scaling` of "test", the outputs of a layer with dropout are
    scaled, as always in evaluation.

    Args:
      layer: its name in the network.
      pooled: False: before the layer's pooling, and before what its order has
        after that; such as a normalization.

    Returns:
      f32[N, h, w, maps] or f32[N, units].

    Raises:
      ValueError, TypeError, FloatingPointError: see `probabilities`; also if
        there is no such layer.
    """
    return self.activations_of_layers(images, [layer], pooled)[layer]

  def activations_of_layers(
    self, images: Any, layers: Sequence[str], pooled: bool = True
  ) -> dict[str, np.ndarray]:
    """Computes `activations` of several layers in one pass.

    Args:
      layers: their names in the network, at least one.
      pooled: of all of them.

    Returns:
      {layer: activations}, in the order of `layers`.

    Raises:
      ValueError, TypeError, FloatingPointError: see `activations`.
    """
    names = [row.name for row in self.network.layers]
    if not layers:
      raise ValueError(
        f"layers is {layers!r}, expected some of {', '.join(names)}. Set "
        "layers."
      )
    for layer in layers:
      if layer not in names:
        raise ValueError(
          f"the network has no layer {layer!r}, but {', '.join(names)}. Set "
          "layer to one of them."
        )
    # Without pooling both are the same.
    is_pooled = bool(pooled) or not any(
      self.network.layer(layer).pool for layer in layers
    )
    ordered = tuple(dict.fromkeys(layers))

    def make() -> Callable[[jax.Array], dict[str, jax.Array]]:
      compute = self.program.make_activations(ordered, pooled=is_pooled)
      return functools.partial(compute, self._variables)

    found = self._compute(
      (*ordered, is_pooled), make, self.read_pictures(images), has_copies=True
    )
    return {layer: found[layer] for layer in ordered}

  @functools.cached_property
  def parameters(self) -> dict[str, dict[str, np.ndarray]]:
    """{layer: {"kernel": f32[...], "bias": f32[out]}}, of global shapes.

    Also "scale", "mean" and "variance" with batch normalization. For a run with
    moving averages, these. For the shapes, see `wiring.Sizes`. They are copies,
    so that changing them does not change the run.
    """
    return jax.tree.map(np.array, self._variables)

  @functools.cached_property
  def metrics(self) -> dict[str, np.ndarray]:
    """The curves of the run; see `reports.read_curves`."""
    return reports.read_curves(self.workdir)

  def read_pictures(self, images: Any) -> pictures.Pictures:
    """Reads pictures at the size that the run stores.

    Raises:
      ValueError, TypeError: one of them cannot be read, or they were read at
        another size.
    """
    side = self.config.data.stored_size
    if isinstance(images, pictures.Pictures):
      if images.pixels.shape[1:] != (side, side, 3):
        sizes = " x ".join(map(str, images.pixels.shape[1:]))
        raise ValueError(
          f"the pictures are {sizes}, expected {side} x {side} x 3. Read them "
          f"with side={side}."
        )
      return images
    found = pictures.read_pictures(images, side=side)
    if problems := found.problems:
      more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
      raise ValueError(
        f"{problems[0].rstrip('.')}{more}. Leave it out, or pass what "
        "read_pictures of alexnet_jax.data.pictures returns, which leaves such "
        "pictures out."
      )
    return found

  def _compute(
    self,
    name: tuple,
    make: Callable[[], Callable[[jax.Array], Any]],
    found: pictures.Pictures,
    *,
    has_copies: bool = False,
  ) -> Any:
    """Computes something of pictures, a batch at a time.

    Args:
      name: by which the compiled function is kept.
      make: makes the function of u8[batch, side, side, 3], which returns an
        array or a tree of arrays.
      has_copies: whether each is equal copies, along a first dimension.

    Returns:
      f32[N, ...], or a tree of these.
    """
    if name not in self._computed:
      self._computed[name] = make()
    compute = self._computed[name]
    pixels, result = found.pixels, None
    count = len(pixels)
    size = self._choose_batch(count)
    for start in range(0, count, size):
      part = pixels[start : start + size]
      batch = np.zeros((size, *pixels.shape[1:]), np.uint8)
      batch[: len(part)] = part
      images = jax.device_put(batch, self.program.batch_shardings[0])
      values, tree = jax.tree.flatten(compute(images))
      values = [
        (_read_first(one) if has_copies else np.asarray(one))[: len(part)]
        for one in values
      ]
      finite = np.all(
        [np.isfinite(one.reshape(len(part), -1)).all(axis=1) for one in values],
        axis=0,
      )
      if not finite.all():
        picture = found.names[start + int(np.argmin(finite))]
        raise FloatingPointError(
          f"the output of the run in {self.workdir!r} for {picture!r} is not "
          "finite. Set step to that of another checkpoint."
        )
      if result is None:
        result = [
          np.empty((count, *one.shape[1:]), one.dtype) for one in values
        ]
      for whole, one in zip(result, values, strict=True):
        whole[start : start + len(part)] = one
    return jax.tree.unflatten(tree, result)

  def _choose_batch(self, count: int) -> int:
    """Returns how many pictures are computed at once.

    Few different sizes, as each is compiled; every device gets as many.
    """
    program = self.program
    size = math.lcm(
      *(
        program.layout.size(sharding.batch)
        for route in program.routes.values()
        for sharding in (route.input_sharding, route.output_sharding)
      )
    )
    while size < min(count, MAX_BATCH):
      size *= 2
    return size


def load(
  workdir: str | os.PathLike,
  step: int | None = None,
  *,
  layout: str | layout_lib.Layout | ml_collections.ConfigDict | None = None,
) -> LoadedRun:
  """Loads a trained run from its workdir, wherever it was trained.

  Args:
    workdir: of the run, which may be training; of several that were trained at
      once, the folder of one of them.
    step: of the checkpoint; None: the newest.
    layout: a name of the catalog, a layout, or `config.layout` of a config;
      None: one device. For several devices where there is no accelerator, this
      must be the first use of JAX, which then simulates them.

  Raises:
    ValueError, TypeError, OSError: there is no run or no such checkpoint, it is
      damaged or of another version, or the layout does not fit the network or
      the devices.
  """
  if not isinstance(workdir, str | os.PathLike):
    raise TypeError(
      f"workdir is {reprlib.repr(workdir)}, expected the path of a run. Set "
      "workdir."
    )
  kinds = str, layout_lib.Layout, ml_collections.ConfigDict
  if layout is not None and not isinstance(layout, kinds):
    raise TypeError(
      f"layout is {reprlib.repr(layout)}, expected the name of one, a Layout, "
      "config.layout of a config, or None. Set layout."
    )
  try:
    return load_by_flags(os.fspath(workdir), step, layout=layout)
  except (ValueError, TypeError, OSError) as error:
    text = str(error)
    for flag, argument in _ARGUMENTS.items():
      text = text.replace(flag, argument)
    raise type(error)(text) from error


def load_by_flags(
  workdir: str,
  step: int | None,
  *,
  layout: str | layout_lib.Layout | ml_collections.ConfigDict | None,
) -> LoadedRun:
  """As `load`, for a command: its errors name flags.

  These are --workdir, --checkpoint_step and --layout.
  """
  try:
    run = trained_run.read(
      workdir,
      fields=_read_fields(),
      layout=catalog.ONE_DEVICE.name if layout is None else layout,
      rounds_batch=True,
      step=step,
    )
    data = run_data.read(
      workdir, run.found, num_classes=run.config.network.num_classes
    )
    _start_devices(run.layout)
    return LoadedRun(
      run,
      class_names=data.class_names,
      program=make_program(run, data.statistics),
    )
  except (ValueError, TypeError, OSError) as error:
    # Here the batch and the mesh follow from the layout.
    text = re.sub(_LAYOUT_FLAGS, "--layout", str(error))
    raise type(error)(text) from error


def make_program(
  run: trained_run.TrainedRun, statistics: statistics_lib.Statistics
) -> program_lib.Program:
  """Makes the program of a run on its layout.

  Args:
    statistics: of the training split.

  Raises:
    ValueError: the layout does not fit the devices.
  """
  try:
    return run_lib.make_program(
      run.config,
      run.network,
      run.layout,
      num_images=run.found["training_images"],
      statistics=statistics,
    )
  except ValueError as error:
    raise ValueError(
      f"the run in {run.workdir!r}: {error} To evaluate it, set --layout or "
      "--mesh."
    ) from error


def load_variables(
  run: trained_run.TrainedRun, program: program_lib.Program
) -> dict[str, dict[str, jax.Array]]:
  """Loads parameters and statistics, or their EMA, onto a program's layout.

  Raises:
    CheckpointError: the checkpoint is damaged; names an earlier intact one.
  """
  like = program.abstract_state
  try:
    state = reader.load(run.workdir, run.step, like)
  except metadata.DamagedError as error:
    hint = reader.advise_intact(
      *(run.workdir, run.step, like),
      step_name="--checkpoint_step",
      workdir_name="--workdir",
    )
    raise metadata.CheckpointError(f"{error} {hint}") from error
  return eval_step.find_variables(state)


def _read_fields() -> ml_collections.ConfigDict:
  """Returns a config with all fields: that beside the package.

  By its path: another folder `configs` may be the one that Python imports.
  """
  package = pathlib.Path(alexnet_jax.__file__).parent
  file = package.parent / "configs" / "default.py"
  spec = importlib.util.spec_from_file_location("alexnet_jax_fields", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def _start_devices(layout: layout_lib.Layout) -> None:
  """Starts the devices of a layout, simulated where there is only a CPU.

  Raises:
    ValueError: JAX has started with fewer.
    OSError: JAX cannot start.
  """
  if layout.devices > 1:
    mesh_lib.simulate_devices(layout.devices, only_cpu=False)
  devices = mesh_lib.start_devices()
  if len(devices) < layout.devices:
    raise ValueError(
      f"layout {layout.name!r} needs {layout.devices} devices "
      f"({layout_lib.format_mesh(layout.mesh)}), but JAX has started with "
      f"{len(devices)} ({devices[0].device_kind}). Leave --layout out for one "
      "device, or start Python with JAX_PLATFORMS=cpu and "
      f"JAX_NUM_CPU_DEVICES={layout.devices} to simulate them."
    )


def _read_first(array: jax.Array) -> np.ndarray:
  """Reads the first of equal copies: [copies, ...] -> [...]."""
  result = np.empty(array.shape[1:], array.dtype)
  for shard in array.addressable_shards:
    copy, *place = shard.index
    if shard.replica_id == 0 and not copy.start:
      result[tuple(place)] = shard.data[0]
  return result

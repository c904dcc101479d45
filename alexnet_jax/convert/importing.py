"""Writes a run that has the weights of a file.

It is a workdir like any other, with a checkpoint of step 0 and a new state of
the optimizer. Everything is checked before anything is written, and it is
written to another folder, which gets its name at the end.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.convert import archive
from alexnet_jax.convert import weights as weights_lib
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.distributed import environment
from alexnet_jax.network import catalog as networks
from alexnet_jax.network import model, wiring
from alexnet_jax.optim import ema
from alexnet_jax.partition import catalog
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import run_data, trained_run

# Facts about data that nobody knows; see `run.fingerprint_data`.
_UNKNOWN = (
  *("dataset", "training_images", "validation_images"),
  *("training_records", "validation_records"),
)
_MAX_NAME = 200
# How the last sentences of errors begin, which say what to do.
_ADVICE = re.compile(r"\. (?:Add|Copy|Make|Restore|Resume|Set|Use) ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
  """The weights of a file as a run.

  Attributes:
    weights: of the file.
    config: of the run, all fields.
    network: of the config.
    found: facts about its data, None where they are not known.
    data: its class names, and the statistics of its pixels.
  """

  weights: weights_lib.Weights
  config: ml_collections.ConfigDict
  network: wiring.Network
  found: Mapping[str, Any]
  data: run_data.RunData

  def describe(self) -> list[str]:
    """Returns lines on the file, the network and the preprocessing."""
    weights, network = self.weights, self.network
    count = sum(size.parameters for size in network.sizes().values())
    return [
      f"the file is {weights.kind}",
      f"arrays: {weights.num_arrays} read",
      f"network: {network.name}, {len(network.layers)} layers, "
      f"{count:,} parameters, {network.columns} "
      f"column{'s' * (network.columns > 1)}, {network.image_size} pixels, "
      f"{len(self.data.class_names):,} classes",
      *_describe_rows(network),
      f"preprocessing: {_describe_preprocessing(self)}",
      *weights.notes,
    ]


def read_class_names(path: str) -> tuple[str, ...]:
  """Reads the names of classes from a text file, one on each line.

  Raises:
    ValueError: it is no text, or a line is empty, too long or there twice.
    OSError: it cannot be read.
  """
  try:
    contents = archive.read_file(path, flag="class_names")
    names = contents.decode("utf-8").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"the file {path!r} is no text in UTF-8, expected a class name on each "
      "line. Set --class_names."
    ) from error
  seen = set()
  for number, name in enumerate(names, start=1):
    if not name.strip() or len(name) > _MAX_NAME or name in seen:
      raise ValueError(
        f"line {number} of {path!r} is {name[:_MAX_NAME]!r}, expected a class "
        f"name of up to {_MAX_NAME} characters that no other line has. Set "
        "--class_names."
      )
    seen.add(name)
  return tuple(names)


def make(
  weights: weights_lib.Weights,
  base: ml_collections.ConfigDict,
  *,
  class_names: Sequence[str] | None = None,
) -> Imported:
  """Makes the config and the facts of the run.

  Args:
    base: a config with all fields; those that do not follow from the file stay.
    class_names: by label; None: those of the file, else numbers.

  Raises:
    ValueError, TypeError: the config, the arrays or the names do not fit.
  """
  source = weights.network
  if isinstance(source, weights_lib.Exported):
    config, found, data = _read_exported(source, base)
    statistics, known_names = data.statistics, data.class_names
  else:
    config = _make_config(source, base)
    statistics, known_names = statistics_lib.PUBLISHED, None
    found = dict.fromkeys(_UNKNOWN) | {
      "statistics": statistics.fingerprint(),
      "environment": environment.describe_recorded(),
    }
  network, _ = settings.check(config)
  _check_variables(weights, network)
  classes = config.network.num_classes
  names = class_names or known_names or tuple(map(str, range(classes)))
  if len(names) != classes:
    raise ValueError(
      f"there are {len(names):,} class names, but the network has {classes:,} "
      "classes, expected as many. Set --class_names."
    )
  return Imported(
    weights=weights,
    config=config,
    network=network,
    # Training in its workdir is refused by this; see `workdir.acquire`.
    found={**found, "imported": weights.kind},
    data=run_data.RunData(class_names=tuple(names), statistics=statistics),
  )


def _make_config(
  source: weights_lib.Published, base: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """Sets the fields of a config that follow from a file."""
  config, table = copy.deepcopy(base), source.table
  network, augment = config.network, config.augment
  network.layers = ml_collections.ConfigDict()
  known = {one.name: one for one in networks.WIRINGS}.get(table.name)
  if known is None:
    settings.check_names("a layer", [row.name for row in table.layers])
    network.update(settings.to_fields(table))
  else:
    network.update(
      {"wiring": table.name, "order": None, "columns": None, "width": 1.0}
    )
    network.image_channels = None
    for row, of_catalog in zip(table.layers, known.layers, strict=True):
      if row is not table.layers[-1] and row.features != of_catalog.features:
        network.layers[row.name] = {"features": row.features}
  network.image_size = source.image_size
  network.num_classes = table.layers[-1].features
  network.dropout_rate = source.dropout_rate
  # Caffe and PyTorch divide by the fraction of kept units in training.
  network.dropout_scaling = "train"
  for name in ("activation", "normalization", "lrn_k", "lrn_alpha", "pooling"):
    network[name] = None
  network.init = "source"
  preprocessing = source.preprocessing
  config.data.stored_size = preprocessing.stored_size
  augment.statistics, augment.mean_from = "published", "channel"
  augment.color_divisor = 1.0
  for name in ("mean", "scale", "channel_scale", "color_order"):
    augment[name] = getattr(preprocessing, name)
  return config


def _read_exported(
  source: weights_lib.Exported, base: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, Mapping[str, Any], run_data.RunData]:
  """Reads the files of a run as those of any other run, with all checks."""
  if source.data is None:
    raise ValueError(
      "the file has no data.json, so that neither the class names nor the "
      "means are known. Set --from to one that has it."
    )
  with tempfile.TemporaryDirectory() as folder:
    for name, text in (
      (workdir_lib.CONFIG_FILE, source.config),
      (run_data.FILE, source.data),
    ):
      pathlib.Path(folder, name).write_text(text, "utf-8")
    if source.mean_image is not None:
      np.save(
        os.path.join(folder, run_data.IMAGE_FILE),
        source.mean_image,
        allow_pickle=False,
      )
    with _naming(folder, "the file of --from"):
      config, found = trained_run.read_config(folder, base)
      data = run_data.read(
        folder, found, num_classes=config.network.num_classes
      )
  return config, found, data


@contextlib.contextmanager
def _naming(folder: str, name: str) -> Iterator[None]:
  """Gives a folder that users do not know another name in errors.

  What they advise for a run that was trained cannot be followed there.
  """
  try:
    yield
  except (ValueError, TypeError, OSError) as error:
    text = str(error).replace(repr(folder), name).replace(f"{folder}/", "")
    reason = _ADVICE.split(text, maxsplit=1)[0].rstrip(".")
    raise ValueError(f"{reason}. Set --from.") from error


def _check_variables(
  weights: weights_lib.Weights, network: wiring.Network
) -> None:
  """Refuses arrays that are not those of the network.

  Raises:
    ValueError: names the first of them.
  """
  expected = {
    f"{name}.{leaf}": shape
    for name, size in network.sizes().items()
    for leaf, shape in size.shapes.items()
  }
  found = traverse_util.flatten_dict(weights.parameters, sep=".")
  if isinstance(weights.network, weights_lib.Exported):
    found |= traverse_util.flatten_dict(weights.network.statistics, sep=".")
    expected |= {
      f"{row.name}.{leaf}": (row.features,)
      for row in network.layers
      if row.normalize == "batch"
      for leaf in ("mean", "variance")
    }
  weights_lib.check_names(list(found), list(expected))
  for name, shape in expected.items():
    if found[name].shape != shape:
      raise ValueError(
        f"{name} has the shape {found[name].shape}, expected {shape}. Set "
        "--from."
      )


def write(imported: Imported, new_workdir: str) -> None:
  """Writes the run; where that fails, nothing stays.

  Args:
    new_workdir: see `workdir.create`.

  Raises:
    ValueError, OSError: it exists, or cannot be written.
  """
  config = imported.config
  program = run_lib.make_program(config, imported.network, catalog.ONE_DEVICE)
  state = _make_state(imported, program)
  with workdir_lib.create(
    new_workdir, config.to_dict(), imported.found
  ) as folder:
    run_data.write(folder, imported.data, flag="new_workdir")
    checkpoints = checkpoint.Checkpoints(folder, keep=config.max_to_keep)
    checkpoints.save(0, state)
    checkpoints.close()


def _make_state(imported: Imported, program) -> step_lib.TrainState:
  """Makes the state before the first step, on one device."""
  parameters, source = imported.weights.parameters, imported.weights.network
  statistics = (
    source.statistics
    if isinstance(source, weights_lib.Exported)
    else model.init_statistics(imported.network)
  )
  # Averages start from the parameters, those of running statistics do not.
  optimizer = jax.tree.map(
    lambda part: (
      part._replace(statistics=statistics)
      if isinstance(part, ema.EmaState)
      else part
    ),
    program.optimizer.init(parameters),
    is_leaf=lambda part: isinstance(part, ema.EmaState),
  )
  state = step_lib.TrainState(
    step=jnp.zeros((), jnp.int32),
    is_finite=jnp.ones((), jnp.bool),
    parameters=parameters,
    optimizer=optimizer,
    statistics=statistics,
  )
  like = program.abstract_state
  return jax.tree.map(
    lambda array, leaf: jax.device_put(array, leaf.sharding), state, like
  )


def _describe_rows(network: wiring.Network) -> list[str]:
  """Returns a line on each layer."""
  lines = []
  for row, size in zip(network.layers, network.sizes().values(), strict=True):
    parts = [f"{row.name}: {' x '.join(map(str, size.kernel))}"]
    if row.window:
      parts.append(f"stride {row.stride}, padding {row.padding}")
    if row.reads == "own":
      parts.append("reads its own column")
    for part in row.order:
      if part == "activation" and row.activation != "linear":
        parts.append(row.activation)
      elif part == "normalization" and row.normalize != "none":
        lrn = row.lrn
        constants = f"k {lrn.k:g}, alpha {lrn.alpha:g}, beta {lrn.beta:g}"
        parts.append(f"normalizes ({row.normalize}, {lrn.size}, {constants})")
      elif part == "pooling" and row.pool:
        parts.append(
          f"{row.pool.kind} pooling {row.pool.window}/{row.pool.stride}"
        )
    if row.dropout:
      parts.append(f"dropout {1 - network.keep_rate(row.name):g}")
    lines.append(f"  {', '.join(parts)}")
  return lines


def _describe_preprocessing(imported: Imported) -> str:
  augment, source = imported.config.augment, imported.weights.network
  mean = augment.mean or imported.data.statistics.mean
  if augment.mean_from != "channel":
    shown = "the mean image"
  else:
    shown = f"mean {_list(mean)} of R, G, B"
  if isinstance(source, weights_lib.Published):
    shown += f" ({source.preprocessing.source})"
  return (
    f"pictures of {imported.config.data.stored_size} pixels, center crop, "
    f"channels in the order {augment.color_order.upper()}, {shown}, divided by "
    f"{_list(augment.channel_scale or (augment.scale,))}"
  )


def _list(numbers: Sequence[float]) -> str:
  return ", ".join(f"{number:.6g}" for number in numbers)

"""Converts runs, imports weights of other programs, and exports them.

    python -m alexnet_jax.convert --from=alexnet.pth --new_workdir=runs/new

writes a run with the weights of a file: torchvision's .pth, .safetensors,
.caffemodel, bvlc_alexnet.npy, ONNX, or an .npz of --to. docs/weights.md says
what is read, and how the result is checked.

    python -m alexnet_jax.convert --workdir=runs/demo --to=weights.safetensors

writes the weights of a run to a file for other programs.

    python -m alexnet_jax.convert --workdir=runs/demo --new_workdir=runs/new \\
      --config=configs/two_device.py --config.network.wiring=block_diagonal

converts a run into one of an equivalent network with other columns. Layers that
read their own column become layers that read all of them, with zeros where the
columns do not meet, or the reverse if these are zeros: see
`network/block_diagonal.py`. The new run resumes at the same step, with the same
optimizer; the old one is not changed.
"""

import ml_collections
import rich.console
from absl import app, flags

from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import command, flag_parsing
from alexnet_jax.convert import (
  checking,
  conversion,
  export,
  importing,
  proof,
  weight_files,
)
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.training import loaded_run

# Fields that an imported run has where the file says nothing.
_BASE = "configs/default.py:imagenet"
# Standard deviation of pixels of 0..255 in natural pictures; see `proof`.
_PIXEL_STD = 58.0

_CONFIG = command.define_config(required=False)
_WORKDIR = command.define_path(
  "workdir",
  "Workdir of the run to convert or to export.",
  remedy=command.READ_HERE,
)
_NEW_WORKDIR = command.define_path(
  "new_workdir",
  "Workdir of the new run; must not exist yet.",
  remedy=command.RUN_HERE,
)
_STEP = flags.DEFINE_integer(
  "checkpoint_step", None, "Step of the checkpoint. Default: the newest."
)
_FROM = command.define_path(
  "from",
  "File of weights to import. --config then has the fields that do not follow "
  f"from it, such as config.data.name; default: {_BASE}.",
  remedy=command.READ_HERE,
)
_CLASS_NAMES = command.define_path(
  "class_names",
  "With --from: text file with the name of a class on each line. Default: "
  "numbers.",
  remedy=command.READ_HERE,
)
_CHECK = command.define_path(
  "check",
  "With --from: folder with a folder of pictures for each class, called by its "
  "name or number, to compute the errors on.",
  remedy=command.READ_HERE,
)
_REFERENCE = command.define_path(
  "reference",
  "With --from: .npz with images, u8[N, h, w, 3] pictures or f32[N, side, "
  "side, 3] network inputs, and the logits or probabilities of another "
  "program, to compare with.",
  remedy=command.READ_HERE,
)
_TO = command.define_path(
  "to",
  "File to write the weights of --workdir to: .safetensors, .npz, .onnx or "
  ".stablehlo.",
)
_NAMES = flags.DEFINE_enum(
  "names",
  None,
  export.NAMES,
  "With --to: names and axes of the arrays. Default: ours.",
)

# Flags that a way of using this command needs, and that it accepts.
_WAYS = {
  "from": (
    {"from", "new_workdir"},
    {"config", "class_names", "check", "reference"},
  ),
  "to": ({"workdir", "to"}, {"names", "checkpoint_step"}),
  "convert": ({"workdir", "new_workdir", "config"}, {"checkpoint_step"}),
}


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(
    ValueError, TypeError, OSError, ImportError, FloatingPointError
  ):
    way = _find_way()
    mesh_lib.simulate_devices(1, only_cpu=True)
    console = command.make_console()
    if way == "from":
      _import(console)
      return
    if way == "to":
      lines = export.export(
        _WORKDIR.value, _TO.value, step=_STEP.value, names=_NAMES.value
      )
    else:
      lines = conversion.convert(
        _CONFIG.value,
        workdir=_WORKDIR.value,
        new_workdir=_NEW_WORKDIR.value,
        step=_STEP.value,
      )
    for line in lines:
      command.print_line(console, line)


def _find_way() -> str:
  """Returns a key of `_WAYS`.

  Raises:
    ValueError: the flags are of no way, or of two.
  """
  given = {
    name
    for name in set().union(*(needed | more for needed, more in _WAYS.values()))
    if flags.FLAGS[name].value is not None
  }
  way = next((name for name in ("from", "to") if name in given), "convert")
  needed, more = _WAYS[way]
  if way == "to":
    given -= {"config"}  # that of --workdir, if no other is given
  does = {
    "from": "--from imports weights",
    "to": "--to exports weights",
    "convert": "without --from and --to, a run is converted",
  }[way]
  if missing := sorted(needed - given):
    raise ValueError(
      f"--{missing[0]} is not set: {does}, which needs "
      f"{_list_flags(needed)}. Set --{missing[0]}."
    )
  if others := sorted(given - needed - more):
    raise ValueError(
      f"--{others[0]} is set, but {does}, which reads "
      f"{_list_flags(needed | more)} only. Leave out --{others[0]}."
    )
  return way


def _list_flags(names: set[str]) -> str:
  return ", ".join(f"--{name}" for name in sorted(names))


def _import(console: rich.console.Console) -> None:
  """Imports a file, and prints what says whether that went well."""
  workdir_lib.check_new(_NEW_WORKDIR.value)
  # All that may be wrong, before anything is written.
  class_names = _CLASS_NAMES.value and importing.read_class_names(
    _CLASS_NAMES.value
  )
  reference = _REFERENCE.value and checking.read_reference(_REFERENCE.value)
  imported = importing.make(
    weight_files.read(_FROM.value), _find_base(), class_names=class_names
  )
  labels = _CHECK.value and checking.find_labels(
    _CHECK.value, imported.data.class_names
  )
  for line in imported.describe():
    command.print_line(console, line)
  importing.write(imported, _NEW_WORKDIR.value)
  command.print_line(console, f"the run is in {_NEW_WORKDIR.value}")
  _examine(console, imported)
  if not labels and not reference:
    return
  run = loaded_run.load(_NEW_WORKDIR.value)
  is_equal = True
  lines = []
  if labels:
    lines += checking.check_pictures(run, labels)
  if reference:
    compared, is_equal = checking.check_reference(run, reference)
    lines += compared
  for line in lines:
    command.print_line(console, line)
  if not is_equal:
    raise ValueError(
      f"the outputs differ from those of {_REFERENCE.value!r} by more than "
      f"{checking.TOLERANCE:g} of their range: network or preprocessing are "
      f"not those of the reference. The run stays in {_NEW_WORKDIR.value!r}."
    )


def _find_base() -> ml_collections.ConfigDict:
  if _CONFIG.value is not None:
    return _CONFIG.value
  return flag_parsing.load_config(_BASE, flag="config")


def _examine(
  console: rich.console.Console, imported: importing.Imported
) -> None:
  """Prints whether the network looks trained."""
  augment = imported.config.augment
  channels = augment.channel_scale or (1.0,)
  scale = augment.scale * sum(channels) / len(channels)
  source = imported.weights.network
  statistics = getattr(source, "statistics", {})
  examination = proof.examine(
    {
      name: {**arrays, **statistics.get(name, {})}
      for name, arrays in imported.weights.parameters.items()
    },
    imported.network,
    pixel_std=_PIXEL_STD / scale,
  )
  command.print_table(console, proof.make_table(examination))
  for line in proof.explain(examination):
    command.print_line(console, line)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

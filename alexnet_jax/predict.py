"""Predicts the classes of pictures with a trained run.

    python -m alexnet_jax.predict --workdir=runs/two_device PICTURE...

A PICTURE is a file, or a folder for the files in it. Shows the five most
probable classes of each, as Figure 4 of the paper. The run needs no data set:
what it knows of its own is in its workdir. A picture that cannot be read gets a
line, and the command ends with code 1. Writes nothing but the file of --json.
"""

import os
import sys

import rich.table
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import augment, pictures
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compilation_cache, summary
from alexnet_jax.training import loaded_run

_WORKDIR = command.define_path(
  "workdir",
  "Directory of a trained run.",
  remedy=command.READ_HERE,
  required=True,
)
_TOP = flags.DEFINE_integer(
  "top", 5, "Classes to show for each picture.", lower_bound=1
)
_VIEWS = flags.DEFINE_enum(
  "views",
  "1",
  ["1", str(augment.VIEWS)],
  "Views of each picture: 1, the center crop, or 10, whose softmax outputs are "
  "averaged; 5 of these for a run that mirrored no images.",
)
_LAYOUT = command.define_layout(default="one device")
_CHECKPOINT_STEP = flags.DEFINE_integer(
  "checkpoint_step", None, "Step of the checkpoint. Default: the newest."
)
_JSON = command.define_path("json", "Write the predictions to this file.")
_SIMULATE_DEVICES = command.define_simulate_devices()
_COMPILATION_CACHE = command.define_compilation_cache()


def main(argv: list[str]) -> None:
  with command.exit_on_error(
    ValueError, TypeError, OSError, FloatingPointError
  ):
    if not argv[1:]:
      raise ValueError(
        "no picture is given, expected files or folders after the flags, such "
        "as --workdir=runs/two_device photo.jpg."
      )
    if _JSON.value is not None:
      command.check_path(_JSON.value, flag="json", endings=(".json",))
    if _SIMULATE_DEVICES.value is not None:
      mesh_lib.simulate_devices(_SIMULATE_DEVICES.value, only_cpu=True)
    run = loaded_run.load_by_flags(
      _WORKDIR.value,
      _CHECKPOINT_STEP.value,
      layout=command.find_layout(_LAYOUT.value, flag="layout"),
    )
    # After the devices of the layout, which it starts.
    compilation_cache.open_cache(_COMPILATION_CACHE.value)
    found = pictures.read_pictures(argv[1:], side=run.config.data.stored_size)
    try:
      predictions = run.predict(found, _TOP.value, views=int(_VIEWS.value))
    except FloatingPointError as error:
      text = str(error).replace("Set step", "Set --checkpoint_step")
      raise FloatingPointError(text) from error
  console = command.make_console()
  command.print_line(console, run)
  command.print_table(console, _make_table(predictions))
  if _JSON.value is not None:
    with open(_JSON.value, "w") as file:
      file.write(command.to_json(_to_json(run, found, predictions)))
    command.print_line(console, f"the predictions are in {_JSON.value}")
  for problem in found.problems:
    line = command.to_plain_text(problem)
    print(f"error: {line}", file=sys.stderr)
  if found.problems:
    sys.exit(1)


def _make_table(
  predictions: list[loaded_run.Prediction],
) -> rich.table.Table:
  """Makes a table with a row for each class of each picture."""
  table = summary.make_table(None, "picture", "class", "> probability")
  for one in predictions:
    for place, (name, probability) in enumerate(one.classes):
      table.add_row(
        "" if place else one.name, name, f"{100 * probability:.2f} %"
      )
  return table


def _to_json(
  run: loaded_run.LoadedRun,
  found: pictures.Pictures,
  predictions: list[loaded_run.Prediction],
) -> dict:
  return {
    "workdir": os.fspath(run.workdir),
    "step": run.step,
    "pictures": [
      {
        "name": one.name,
        "classes": [
          {"class": name, "probability": probability}
          for name, probability in one.classes
        ],
      }
      for one in predictions
    ],
    "problems": list(found.problems),
  }


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt()  # flags may stand after pictures
  app.run(main, flags_parser=command.parse_flags)

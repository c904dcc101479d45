"""Makes a page of a run: curves, kernels, mistakes, time.

    python -m alexnet_jax.report --workdir=runs/demo --out=report.html

One HTML file that opens anywhere, without a network: what ran, its curves, the
first kernels, activations, predictions and mistakes, and where a step's time
and bytes go. Of several runs the curves are drawn over each other; all else is
that of the first. What cannot be shown, as without the data set, gets a line
that says why. Also shows a run that is still training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import app, flags

from alexnet_jax.checkpoints import members
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import command
from alexnet_jax.cli import progress as progress_lib
from alexnet_jax.data import atomic
from alexnet_jax.figures import runs as runs_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.program import compilation_cache
from alexnet_jax.report import (
  costs,
  curves,
  facts,
  kernels,
  layers,
  layout,
  mistakes,
  page,
  validation,
)
from alexnet_jax.report import section as section_lib
from alexnet_jax.training import loaded_run

_WORKDIR = command.define_workdirs()
_CHECKPOINT_STEP = flags.DEFINE_integer(
  "checkpoint_step", None, "Step of the checkpoint. Default: the newest."
)
_PICTURE = command.define_path(
  "picture",
  "The picture whose activations are shown. Default: the first one of the "
  "validation split.",
  remedy=command.READ_HERE,
)
_X = flags.DEFINE_enum(
  "x", "epoch", [*runs_lib.AXES], "What the curves are drawn over."
)
_SMOOTHING = command.define_smoothing()
_DATA_DIR = command.define_data_dir()
_IMAGES = flags.DEFINE_integer(
  "images",
  10_000,
  "Images of a larger validation split that are computed, evenly spread.",
)
_MACHINE = command.define_machine()
_OUT = command.define_path("out", "The page, .html.", required=True)
_FIGURES = command.define_path(
  "figures", "Write each figure of the page to a file in this folder, too."
)
_FIGURES_FORMAT = flags.DEFINE_enum(
  "figures_format",
  page.KINDS[0],
  [*page.KINDS],
  "Kind of the files of --figures; png with 300 dots per inch.",
)
_COMPILATION_CACHE = command.define_compilation_cache()

# Fields in which runs differ that the title names.
_NAMED = 5


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  console = command.make_console()
  with command.exit_on_error(ValueError, TypeError, OSError):
    _check_flags()
    workdirs, others = runs_lib.find_workdirs(_WORKDIR.value)
    found, problems = _read_runs(workdirs)
    shown = found[0]
    runs = runs_lib.sort(found)
    legend = runs_lib.make_legend(runs)
    machine = command.load_machine(_MACHINE.value, None)
    workdir, notes = _choose_run(shown, runs)
    sections = [
      facts.make_section(
        *(runs, legend),
        shown=shown,
        folder=workdir,
        notes=[*notes, *problems],
      ),
      curves.make_section(
        runs, legend, axis=_X.value, smoothing=_SMOOTHING.value
      ),
      *_make_sections(workdir, shown.curves, machine, console),
    ]
    content = page.render(
      title=_make_title(shown, runs),
      subtitle=_describe(runs, legend),
      sections=sections,
    )
    if _FIGURES.value:
      written = page.write_figures(
        sections, _FIGURES.value, kind=_FIGURES_FORMAT.value
      )
    with (
      atomic.replace(_OUT.value) as partial,
      open(partial, "w", encoding="utf-8") as opened,
    ):
      opened.write(content)
  if others:
    command.print_line(console, f"no runs: {', '.join(others)}")
  for line in problems:
    command.print_line(console, line)
  if _FIGURES.value:
    command.print_line(console, f"{written} figures are in {_FIGURES.value}")
  command.print_line(console, f"the page is in {_OUT.value}")


def _check_flags() -> None:
  """Checks what can be checked before a run is read.

  Raises:
    ValueError: a flag is missing or has another value.
  """
  if _PICTURE.value and not os.path.isfile(_PICTURE.value):
    raise ValueError(
      f"there is no picture {_PICTURE.value!r}, expected a file. Set --picture."
    )
  command.check_smoothing(_SMOOTHING.value)
  if _IMAGES.value < 1:
    raise ValueError(
      f"--images is {_IMAGES.value}, expected 1 or more. Set --images=1000."
    )
  command.check_path(_OUT.value, flag="out", endings=(".html",))
  if _FIGURES.value:
    parent = workdir_lib.find_existing_parent(_FIGURES.value)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
      raise ValueError(
        f"the folder {_FIGURES.value!r} cannot be made or written: {parent!r} "
        "is not a folder that you may write to. Set --figures."
      )


def _read_runs(
  workdirs: Sequence[str],
) -> tuple[list[runs_lib.Run], list[str]]:
  """Reads runs, as far as they can be read.

  Returns:
    The runs that have a config, and a line for each problem.

  Raises:
    ValueError, OSError: none can be read.
  """
  runs, problems, errors = [], [], []
  for workdir in workdirs:
    try:
      runs.append(runs_lib.read(workdir))
      continue
    except (ValueError, OSError) as error:
      errors.append(error)
      problems.append(f"{workdir}: {error}")
    # Its curves may be what cannot be read.
    with contextlib.suppress(ValueError, OSError):
      runs.append(
        runs_lib.Run(
          workdir=workdir,
          fields=workdir_lib.read_config(workdir) or {},
          curves={},
        )
      )
  if not runs:
    raise errors[0]
  return runs, problems


def _choose_run(
  shown: runs_lib.Run, runs: Sequence[runs_lib.Run]
) -> tuple[str, list[str]]:
  """Chooses the run whose checkpoint is shown.

  Returns:
    Its workdir, and lines that say which one it is if there are several.
  """
  notes = []
  if len(runs) > 1:
    notes.append(f"What follows the curves is of the run in {shown.workdir}.")
  workdir, *others = members.find_workdirs([shown.workdir]) or [shown.workdir]
  if others:
    notes.append(
      f"{shown.workdir} has {1 + len(others)} runs that were trained at once. "
      f"Its curves are their means; what follows the curves is of {workdir}."
    )
  return workdir, notes


def _make_sections(
  workdir: str,
  of_run: Mapping[str, np.ndarray],
  machine: machine_lib.Machine | None,
  console: command.PlainConsole,
) -> list[section_lib.Section]:
  """Makes what follows the curves; a line says what cannot be made, and why.

  Raises:
    ValueError, TypeError, OSError: --picture or the checkpoint of
      --checkpoint_step cannot be read.
  """
  try:
    config, _ = facts.read_config(workdir)
  except (ValueError, OSError) as error:
    if _CHECKPOINT_STEP.value is not None:
      raise  # it was asked for
    return [_say_not_shown("All else is", error)]
  return [
    *_make_section(
      layout.NAME, layout.TITLE, lambda: [layout.make_section(config)]
    ),
    *_make_sections_of_checkpoint(workdir, console),
    *_make_section(
      costs.NAME,
      costs.TITLE,
      lambda: [costs.make_section(config, of_run, machine)],
    ),
  ]


def _make_sections_of_checkpoint(
  workdir: str, console: command.PlainConsole
) -> list[section_lib.Section]:
  """As `_make_sections`, what needs the parameters of the run."""
  try:
    run = loaded_run.load_by_flags(workdir, _CHECKPOINT_STEP.value, layout=None)
  except (ValueError, TypeError, OSError) as error:
    if _CHECKPOINT_STEP.value is not None:
      raise  # it was asked for
    return [
      _say_not_shown(
        "Kernels, activations, predictions and mistakes are", error
      )
    ]
  # After the devices, which it starts.
  compilation_cache.open_cache(_COMPILATION_CACHE.value)
  picture = None
  if _PICTURE.value:
    picture = run.read_pictures(_PICTURE.value).pixels[0]
  with progress_lib.Images(console) as progress:
    found = validation.read(
      run,
      data_dir=_DATA_DIR.value,
      most=_IMAGES.value,
      report=progress.advance,
    )
  return [
    *_make_section(
      kernels.NAME, kernels.TITLE, lambda: [kernels.make_section(run)]
    ),
    *_make_section(
      layers.NAME, layers.TITLE, lambda: [_show_layers(run, picture, found)]
    ),
    *_make_section(
      mistakes.NAME, mistakes.TITLE, lambda: mistakes.make_sections(run, found)
    ),
  ]


def _say_not_shown(what: str, error: Exception) -> section_lib.Section:
  return section_lib.Section(
    name="not-shown", title="Not shown", text=[f"{what} not shown: {error}"]
  )


def _make_section(
  name: str, title: str, make: Callable[[], Sequence[section_lib.Section]]
) -> Sequence[section_lib.Section]:
  """Makes sections, or one that says why they cannot be made.

  Args:
    name, title: of the first of them, or of the one instead.
  """
  try:
    return make()
  except (ValueError, TypeError, OSError, FloatingPointError) as error:
    return [
      section_lib.Section(name=name, title=title, text=[f"Not shown: {error}"])
    ]


def _show_layers(
  run: loaded_run.LoadedRun,
  picture: np.ndarray | None,
  found: validation.Validation | str,
) -> section_lib.Section:
  """Makes the section on the activations of --picture, or of a first image.

  Raises:
    ValueError: there is no picture.
    FloatingPointError: an activation is not finite.
  """
  if picture is not None:
    return layers.make_section(run, picture, os.path.basename(_PICTURE.value))
  if isinstance(found, str):
    raise ValueError(f"{found} Or set --picture.")
  (image,) = found.read_pictures([0])
  name = found.find_name(0)
  shown = f"0 of {found.name}"
  if name is not None:
    shown += f" (class {name})"
  return layers.make_section(run, image, shown)


def _make_title(shown: runs_lib.Run, runs: Sequence[runs_lib.Run]) -> str:
  name = os.path.basename(os.path.abspath(shown.workdir))
  more = len(runs) - 1
  if not more:
    return f"Run {name}"
  return f"Run {name} and {more} {'other' if more == 1 else 'others'}"


def _describe(runs: Sequence[runs_lib.Run], legend: runs_lib.Legend) -> str:
  if len(runs) == 1:
    return runs[0].workdir
  if not legend.differing:
    return f"{len(runs)} runs of one config"
  names = [*legend.differing]
  more = f" and {len(names) - _NAMED} more fields" if names[_NAMED:] else ""
  return f"{len(runs)} runs, which differ in {', '.join(names[:_NAMED])}{more}"


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

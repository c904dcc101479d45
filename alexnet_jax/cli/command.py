"""What every command does: its config, its console, its errors in one line."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import rich.console
import rich.measure
import rich.segment
import rich.table
from absl import flags, logging
from ml_collections import config_flags

from alexnet_jax.cli import flag_parsing
from alexnet_jax.distributed import cluster, preemption
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.partition import mesh
from alexnet_jax.program import compiler_options

# Of text that goes to a file or a pipe.
PLAIN_WIDTH = 120
# Each of them has threads of its own.
MOST_SIMULATED = 512
# Of an error; more of it helps nobody.
_LONGEST_LINE, _LONGEST_END = 1500, 500


def define_config(
  default: str | None = None, *, required: bool = True
) -> flags.FlagHolder:
  """Defines --config.

  Args:
    default: the config where none is given.
    required: whether one must be given where there is no default.
  """
  holder = config_flags.DEFINE_config_file(
    "config",
    default,
    "The config: configs/NAME.py or configs/NAME.py:VARIANT.",
  )
  if default is None and required:
    flags.mark_flag_as_required("config")
  return holder


def define_simulate_devices() -> flags.FlagHolder:
  """Defines --simulate_devices."""
  return flags.DEFINE_integer(
    "simulate_devices",
    None,
    "Use this many devices simulated on the CPU, and no accelerator. Default: "
    "as many as the layout needs, where there is no accelerator. Of several "
    "processes, each has so many.",
    lower_bound=1,
    upper_bound=MOST_SIMULATED,
  )


def define_distributed() -> flags.FlagHolder:
  """Defines --distributed."""
  return flags.DEFINE_enum(
    "distributed",
    "auto",
    cluster.MODES,
    "How a process finds the others of a run. env: JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES, JAX_PROCESS_ID, or Open MPI 5 and PMIx. auto: these if "
    "they are set, else what JAX detects: Slurm, Open MPI 4, TPU slices, "
    "Kubernetes. off: there are no others.",
  )


def define_start_timeout() -> flags.FlagHolder:
  """Defines --start_timeout_seconds."""
  holder = flags.DEFINE_float(
    "start_timeout_seconds",
    25.0,
    "How long to wait at the start until all processes are there.",
    lower_bound=1.0,
  )
  check_finite(holder)
  return holder


def check_finite(holder: flags.FlagHolder) -> None:
  """Has a flag refuse inf, and nan, which is within all bounds of absl."""
  flags.register_validator(
    holder.name, math.isfinite, "expected a finite number"
  )


@contextlib.contextmanager
def start(
  distributed: flags.FlagHolder,
  timeout: flags.FlagHolder,
  *,
  same: Mapping[str, str],
  signals: preemption.Signals | None = None,
) -> Iterator[group_lib.Group]:
  """Starts the processes of a run together; before JAX is first used.

  Args:
    distributed: from `define_distributed`.
    timeout: from `define_start_timeout`.
    same: what must be the same in all processes, {what: value}.
    signals: that are heeded; None: none are, as Python has it.
  """
  with contextlib.ExitStack() as opened:
    with in_one_line(ValueError, OSError):
      place = cluster.find(distributed.value, timeout_seconds=timeout.value)
      group = opened.enter_context(
        group_lib.start(
          place, same=same, timeout_seconds=timeout.value, signals=signals
        )
      )
    yield group


def define_xla_options() -> flags.FlagHolder:
  """Defines --xla_options."""
  return flags.DEFINE_enum(
    "xla_options",
    "auto",
    compiler_options.MODES,
    "Options for XLA, as that a device computes while it communicates. auto: "
    "those preset for its platform; what XLA_FLAGS or LIBTPU_INIT_ARGS sets "
    "stays. off: XLA's own.",
  )


def define_implementations() -> flags.FlagHolder:
  """Defines --implementations."""
  return flags.DEFINE_string(
    "implementations",
    implementations_lib.AUTO,
    "How operations are computed, the numbers being the same. auto: the rule "
    "for the platform; plain: as one would write them down; else what is to "
    "differ from the rule, as pool=window,bias=sum. See "
    "alexnet_jax/network/implementations.py.",
  )


def define_compilation_cache() -> flags.FlagHolder:
  """Defines --compilation_cache."""
  return flags.DEFINE_string(
    "compilation_cache",
    None,
    "The folder that keeps compiled programs for the next start, or off. "
    "Default: JAX_COMPILATION_CACHE_DIR, else alexnet_jax in XDG_CACHE_HOME or "
    "~/.cache; that is for one process, several need a folder that all see.",
  )


def define_topology() -> flags.FlagHolder:
  """Defines --topology."""
  return flags.DEFINE_string(
    "topology",
    None,
    "Compile for a TPU slice that need not be there: v4, v5e, v5p or v6e and "
    "its chips, as v5e:2x4.",
  )


def choose_devices(
  count: int, *, simulated: int | None, topology_name: str | None
) -> Sequence[jax.Device]:
  """The devices to compile for; before JAX is first used.

  Args:
    count: as many as are needed.
    simulated: the value of --simulate_devices.
    topology_name: the value of --topology.

  Returns:
    At least `count` devices, maybe of a slice that is not there.

  Raises:
    ValueError, ImportError: too few, no such slice, or no libtpu.
  """
  if topology_name:
    mesh.simulate_devices(1, only_cpu=True)
    devices = mesh.find_devices(topology_name)
  else:
    mesh.simulate_devices(simulated or count, only_cpu=simulated is not None)
    devices = jax.devices()
  if len(devices) < count:
    raise ValueError(
      f"{count} devices are needed, and there are {len(devices)} "
      f"({devices[0].device_kind}). Set config.layout.mesh or --devices lower, "
      f"or --simulate_devices or --topology higher."
    )
  return devices


def to_numbers(
  flag: str, values: Sequence[str | int], *, most: int = 2**20
) -> list[int]:
  """The values of a flag that lists counts.

  Args:
    flag: its name.
    values: as they were given.
    most: what each may be at most.

  Raises:
    ValueError: there is none, or one is no whole number of 1 to `most`.
  """
  if not values:
    raise ValueError(
      f"--{flag} is empty, expected whole numbers. Set --{flag}=2,4."
    )
  for value in values:
    # Python turns no more than some 4,000 digits into a number.
    digits = str(value)[:20]
    if not digits.isdecimal() or not 1 <= int(digits) <= most:
      raise ValueError(
        f"--{flag} has {value!r}, expected whole numbers of 1 to {most:,}. "
        f"Set --{flag}=2,4."
      )
  return [int(value) for value in values]


def config_name() -> str:
  """The name of the given config, with its variant: `two_device-imagenet`."""
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  path, _, variant = name.partition(":")
  stem = os.path.splitext(os.path.basename(path))[0]
  return f"{stem}-{variant}" if variant else stem


def make_console(
  group: group_lib.Group | None = None,
  kind: type[rich.console.Console] = rich.console.Console,
) -> rich.console.Console:
  """The console of this process: only the first of several says anything."""
  quiet = group is not None and not group.is_first
  console = kind(quiet=quiet)
  if not console.is_terminal:
    console.width = PLAIN_WIDTH
  return console


def print_whole(console: rich.console.Console, table: rich.table.Table) -> None:
  """Prints a table as wide as it is, so that no number is cut."""
  unlimited = console.options.update_width(1000)
  needed = rich.measure.Measurement.get(console, unlimited, table).maximum
  # `Console.print(width=)` makes narrower than the terminal, never wider.
  options = console.options.update_width(max(console.width, needed))
  rendered = rich.segment.Segments(console.render(table, options))
  console.print(rendered, crop=False)


@contextlib.contextmanager
def mute_libraries() -> Iterator[None]:
  """Drops what is printed past Python: gloo reports its connections so."""
  sys.stdout.flush()
  printed, kept = sys.stdout, os.dup(1)
  with (
    open(os.devnull, "w") as nowhere,
    os.fdopen(kept, "w", buffering=1) as shown,
  ):
    os.dup2(nowhere.fileno(), 1)
    sys.stdout = shown
    try:
      yield
    finally:
      sys.stdout = printed
      shown.flush()
      os.dup2(kept, 1)


def mute_gloo(
  group: group_lib.Group, devices: jax.sharding.Mesh
) -> contextlib.AbstractContextManager:
  """Mutes what gloo prints, not what NCCL prints for those who ask it to."""
  is_gloo = group.count > 1 and mesh.is_simulated(devices)
  return mute_libraries() if is_gloo else contextlib.nullcontext()


def check_no_arguments(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    fail(ValueError(f"unexpected argument {argv[1]!r}, expected flags only."))


@contextlib.contextmanager
def in_one_line(
  *kinds: type[Exception], group: group_lib.Group | None = None
) -> Iterator[None]:
  """Ends the process in one line on errors that a user can cause.

  Args:
    *kinds: of the errors.
    group: of several processes, the line says which one this is.
  """
  try:
    yield
  except kinds as error:
    fail(error, group)


def parse_flags(argv: list[str]) -> list[str]:
  """For `app.run`: parses the flags, errors in one line."""
  try:
    unused = flag_parsing.parse(argv)
  except (flags.Error, ValueError, TypeError, OSError, ImportError) as error:
    fail(error)
  if flags.FLAGS["verbosity"].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # libraries talk a lot
  return unused


def fail(error: Exception, group: group_lib.Group | None = None) -> None:
  """Ends with one line on standard error; --verbosity=1 adds the place."""
  logging.debug("where it was found:", exc_info=error)
  several = group is not None and group.count > 1
  where = f"{group.label()}: " if several else ""
  line = " ".join(str(error).split())
  if len(line) > _LONGEST_LINE + _LONGEST_END:
    line = f"{line[:_LONGEST_LINE]} ... {line[-_LONGEST_END:]}"
  sys.exit(f"error: {where}{line}")


_NO_READER = (
  b"nobody reads standard output any longer: the run goes on, and what it "
  b"reports is in metrics.jsonl\n"
)


class Lasting(rich.console.Console):
  """A console whose reader may go away, as `| tee` does with Ctrl-C."""

  def on_broken_pipe(self) -> None:
    """Goes on without a reader, where rich's own ends the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    try:
      os.write(sys.stderr.fileno(), _NO_READER)
    except OSError:  # `2>&1 | tee`: it was the same pipe
      os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)


def check_path(path: str, *, flag: str, endings: Sequence[str]) -> None:
  """Refuses a file that cannot be written, before anything is computed.

  Raises:
    ValueError: it has another ending, or cannot be written.
  """
  if not path.endswith(tuple(endings)):
    raise ValueError(
      f"the file {path!r} does not end in {' or '.join(endings)}. Set --{flag}."
    )
  folder = os.path.dirname(path) or "."
  if not os.access(folder, os.W_OK) or os.path.isdir(path):
    raise ValueError(
      f"the file {path!r} cannot be written: {folder!r} is no folder, or not "
      f"yours. Set --{flag}."
    )


def check_picture_path(path: str, *, flag: str) -> None:
  """Refuses a file that cannot be drawn to, before anything is computed.

  Args:
    path: of the file.
    flag: that it was given by, for the error.

  Raises:
    ValueError: it is neither SVG nor PNG, or its folder is not there.
  """
  if not path.endswith((".svg", ".png")):
    raise ValueError(
      f"the picture {path!r} is neither .svg nor .png. "
      f"Set --{flag} to a name that ends in one of these."
    )
  folder = os.path.dirname(path) or "."
  if not os.access(folder, os.W_OK):
    raise ValueError(
      f"the picture {path!r} cannot be written: {folder!r} is no folder, or "
      f"not yours. Set --{flag}."
    )

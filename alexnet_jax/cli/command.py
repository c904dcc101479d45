"""What commands share: flags, processes, a console, one-line errors."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import ml_collections
import rich.console
import rich.measure
import rich.segment
import rich.table
import rich.text
from absl import flags, logging
from ml_collections import config_flags

from alexnet_jax.cli import flag_parsing
from alexnet_jax.distributed import preemption
from alexnet_jax.planner import machine as machine_lib

# Functions import what imports JAX: that takes a second, and not every command
# uses it.
if TYPE_CHECKING:
  import jax

  from alexnet_jax.distributed import group as group_lib

# Columns of text that goes to a file or a pipe.
PLAIN_WIDTH = 120
# Each simulated device has threads of its own.
MAX_SIMULATED_DEVICES = 512
# Endings of pictures, for `check_path`.
PICTURES = (".svg", ".png")
# Characters of a longer error that are shown: its start and its end.
_ERROR_START, _ERROR_END = 1500, 500
# Of a write to what is full, gone, closed, or takes nothing now. A read may
# fail with some of them, too.
_WRITE_ERRORS = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE),
  *(errno.EAGAIN, errno.EBADF),
)
# What a terminal obeys, except new lines; bytes of a name that are no text.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# What to do about an address such as gs://bucket in a flag.
WRITE_HERE = "Write to a local or shared folder, and copy it there afterwards."
RUN_HERE = (
  "A run locks, renames and extends files, which object stores cannot do. Set "
  "a local or shared folder, and copy it there afterwards."
)
READ_HERE = (
  "Mount it (gcsfuse, mountpoint-s3) or copy it here, and set that folder."
)

# The flags below belong to the command that defines them, for its --help.
flags.disclaim_key_flags()


def define_config(
  default: str | None = None, *, required: bool = True, settable: bool = True
) -> flags.FlagHolder:
  """Defines --config.

  Args:
    default: the config file if none is given.
    required: whether one must be given if there is no default.
    settable: whether users may set it; else --help does not show it.
  """
  holder = config_flags.DEFINE_config_file(
    "config",
    default and flag_parsing.find_config(default),
    "The config, configs/NAME.py or configs/NAME.py:VARIANT, or the workdir of "
    "a run, for the config of that run. A path under configs/ that does not "
    "exist here is looked up in the installed package."
    if settable
    else " ",  # absl replaces an empty text
    sys_argv=flag_parsing.ARGUMENTS,
  )
  if default is None and required:
    flags.mark_flag_as_required("config")
  return holder


def find_layout(
  name: str | None, *, flag: str
) -> str | ml_collections.ConfigDict | None:
  """Returns a layout's name, or the fields that define one.

  Args:
    name: of a layout, of a config file, NAME.py or NAME.py:VARIANT, or the path
      of a workdir with a / in it, which no layout has; None stays.
    flag: whose value it is, for an error.

  Raises:
    ValueError, FileNotFoundError: there is no such file or workdir, or it has
      no layout.
  """
  if name is None or not (
    os.sep in name or name.partition(":")[0].endswith(".py")
  ):
    return name
  config = flag_parsing.load_config(name, flag=flag)
  if not isinstance(getattr(config, "layout", None), ml_collections.ConfigDict):
    raise ValueError(
      f"the config of {name!r} has no group layout, expected one. Start from "
      f"configs/default.py, or set --{flag}."
    )
  return config.layout


def define_path(
  name: str,
  text: str,
  *,
  default: str | None = None,
  remedy: str = WRITE_HERE,
  accepted: Sequence[str] = (),
  required: bool = False,
  repeatable: bool = False,
) -> flags.FlagHolder:
  """Defines a flag whose value is a path; all flags of that kind come from it.

  Args:
    name: of the flag.
    text: for --help.
    remedy, accepted: see `flag_parsing.PathParser`.
    required: whether it must be given.
    repeatable: whether it may be given several times; the value is a list. A
      comma is part of a path.
  """
  parser = flag_parsing.PathParser(remedy=remedy, accepted=accepted)
  serializer = flags.ArgumentSerializer()
  if repeatable:
    return flags.DEFINE_multi(parser, serializer, name, [], text)
  return flags.DEFINE(
    parser, name, default, text, serializer=serializer, required=required
  )


def define_list(
  name: str, default: Sequence[str], text: str
) -> flags.FlagHolder:
  """Defines a flag with a list of words: A,B, or given several times.

  A word with a comma is quoted as in a CSV file: '"a,b",c'.
  """
  return flags.DEFINE_flag(
    flag_parsing.ListFlag(
      flags.ListParser(), flags.ListSerializer(","), name, default, text
    )
  )


def define_data_dir(*, writes: bool = False) -> flags.FlagHolder:
  """Defines --data_dir.

  Args:
    writes: whether the command writes there, which it cannot do in a bucket.
  """
  return define_path(
    "data_dir",
    "The folder of the prepared datasets. Default: TFDS_DATA_DIR, else "
    "~/tensorflow_datasets."
    + ("" if writes else " Prepared sets may be in a bucket, gs://."),
    remedy=WRITE_HERE if writes else READ_HERE,
    accepted=() if writes else ("gs://",),
  )


def define_layout(*, default: str) -> flags.FlagHolder:
  """Defines --layout, whose value `find_layout` reads.

  Args:
    default: the layout without the flag, in words.
  """
  return flags.DEFINE_string(
    "layout",
    None,
    "A layout of the catalog; or a config file, NAME.py or NAME.py:VARIANT, or "
    "the workdir of a run, as runs/NAME, for the layout of its config. "
    f"Default: {default}.",
  )


def define_workdirs() -> flags.FlagHolder:
  """Defines --workdir of several runs, for `runs.find_workdirs`."""
  return define_path(
    "workdir",
    "The workdir of a run, or a quoted pattern such as 'runs/sweep/*'. "
    "Several: A,B, or the flag several times.",
    remedy=READ_HERE,
    repeatable=True,
  )


def define_smoothing() -> flags.FlagHolder:
  """Defines --smoothing of curves, for `check_smoothing`."""
  return flags.DEFINE_float(
    "smoothing",
    0.0,
    "Weight of the average before a value in an exponential moving average; "
    "0: none, 0.9: over about ten values. The values themselves stay, pale.",
  )


def check_smoothing(weight: float) -> None:
  """Refuses a weight that is no average.

  Raises:
    ValueError: it is not in 0 <= weight < 1.
  """
  if not 0 <= weight < 1:
    raise ValueError(
      f"--smoothing is {weight}, expected 0 or more and less than 1. Set "
      "--smoothing=0.9."
    )


def define_format() -> flags.FlagHolder:
  return flags.DEFINE_enum(
    "format", "table", ["table", "json"], "Print tables, or JSON."
  )


def define_simulate_devices() -> flags.FlagHolder:
  return flags.DEFINE_integer(
    "simulate_devices",
    None,
    "Devices to simulate on the CPU, in each process, instead of using an "
    "accelerator. Default: as many as the layout needs if there is no "
    "accelerator.",
    lower_bound=1,
    upper_bound=MAX_SIMULATED_DEVICES,
  )


def define_distributed() -> flags.FlagHolder:
  from alexnet_jax.distributed import cluster

  return flags.DEFINE_enum(
    "distributed",
    "auto",
    cluster.MODES,
    "How a process finds the others of a run. env: JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or those of a launcher (Open MPI 5, "
    "torchrun, MPICH, ...); auto: these if they are set, else what JAX detects "
    "(Slurm, Open MPI 4, TPU slices, Kubernetes); off: a single process.",
  )


def define_start_timeout() -> flags.FlagHolder:
  holder = flags.DEFINE_float(
    "start_timeout_seconds",
    25.0,
    "Seconds to wait at the start for the other processes.",
    lower_bound=1.0,
  )
  check_finite(holder)
  return holder


def define_topology() -> flags.FlagHolder:
  return flags.DEFINE_string(
    "topology",
    None,
    "Compile for this TPU slice, which need not be present: v4, v5e, v5p or "
    "v6e and its chips, e.g. v5e:2x4.",
  )


def define_machine(*, required: bool = False) -> flags.FlagHolder:
  return define_path(
    "machine",
    "Predict the time of a step on this machine: a JSON file, or one of "
    f"{', '.join(machine_lib.names())}.",
    remedy=READ_HERE,
    required=required,
  )


def define_hosts() -> flags.FlagHolder:
  return flags.DEFINE_string(
    "hosts",
    None,
    "How the devices of --machine are spread: hosts x devices in each, e.g. "
    "2x4. Default: as its file says.",
  )


def parse_hosts(value: str) -> tuple[int, int]:
  """Parses a value of --hosts: hosts, and devices in each.

  Raises:
    ValueError: it is something else.
  """
  found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value)
  if not found:
    raise ValueError(
      f"--hosts is {value!r}, expected hosts x devices in each. Set "
      "--hosts=2x4."
    )
  return int(found[1]), int(found[2])


def load_machine(
  name: str | None, hosts: str | None
) -> machine_lib.Machine | None:
  """Loads a machine, with hosts of so many devices if that is asked for.

  Args:
    name, hosts: the values of --machine and --hosts.

  Returns:
    None if neither is given.

  Raises:
    ValueError, OSError: there is no such machine, or it has no such hosts.
  """
  if name is None:
    if hosts is not None:
      raise ValueError(
        f"--hosts={hosts} says nothing without a machine. Set --machine, or "
        "leave --hosts out."
      )
    return None
  machine = machine_lib.load(name)
  return machine.with_hosts(*parse_hosts(hosts)) if hosts else machine


def define_xla_options() -> flags.FlagHolder:
  from alexnet_jax.program import compiler_options

  return flags.DEFINE_enum(
    "xla_options",
    "auto",
    compiler_options.MODES,
    "XLA options, e.g. to compute during communication. auto: a preset for the "
    "platform, which XLA_FLAGS and LIBTPU_INIT_ARGS override; off: XLA's own.",
  )


def define_implementations() -> flags.FlagHolder:
  from alexnet_jax.network import implementations as implementations_lib

  return flags.DEFINE_string(
    "implementations",
    implementations_lib.AUTO,
    "How operations are computed; results are equal up to rounding. auto: the "
    "rule for the platform; plain: the textbook form of each; else changes to "
    "the rule, e.g. pool=window,bias=sum "
    "(alexnet_jax/network/implementations.py lists them).",
  )


def define_compilation_cache() -> flags.FlagHolder:
  return define_path(
    "compilation_cache",
    "The folder that keeps compiled programs for the next start, or off. "
    "Default: JAX_COMPILATION_CACHE_DIR, else, for a single process, "
    "alexnet_jax in XDG_CACHE_HOME or ~/.cache; several processes need a "
    "folder that all of them see, which may be a bucket (gs://, s3://).",
    **flag_parsing.CACHE_PATHS,
  )


def check_finite(holder: flags.FlagHolder) -> None:
  """Makes a flag refuse inf and nan; nan passes all bounds of absl."""
  flags.register_validator(
    holder.name,
    lambda value: value is None or math.isfinite(value),
    "expected a finite number",
  )


def parse_flags(argv: list[str], *, uses_jax: bool = True) -> list[str]:
  """Parses the flags, for `app.run`, and applies `environment`.

  Prints the help or a one-line error. From here on, a standard output that
  cannot be written ends in one line, too.

  Args:
    uses_jax: whether the command uses JAX; else `environment` says nothing.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # A path may have what the stream's encoding lacks.
      stream.reconfigure(errors="backslashreplace")
  sys.excepthook = _report_uncaught
  atexit.register(_flush_output)
  try:
    unused = flag_parsing.parse(argv)
    if uses_jax:
      from alexnet_jax.distributed import environment

      environment.apply()
  except (flags.Error, ValueError, TypeError, OSError, ImportError) as error:
    exit_with_error(error)
  if flags.FLAGS["verbosity"].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # INFO is full of libraries' lines
  return unused


def _report_uncaught(kind, error, traceback) -> None:
  """Prints one line if an output cannot be written, else as Python does."""
  line = _describe_failed_output(error)
  if line is None:
    sys.__excepthook__(kind, error, traceback)
  else:
    preemption.write_stderr(f"error: {line}")


def _flush_output() -> None:
  """Ends the process with code 1 if the last of its output is lost."""
  if line := _describe_failed_output(None):
    preemption.write_stderr(f"error: {line}")
    os._exit(1)


def _describe_failed_output(error: BaseException | None) -> str | None:
  """Returns a line if standard output cannot be written, and drops its rest.

  Also if an error may come from that: those of a write do not name the file.
  None for an error that has another reason, which is the one to show.
  """
  is_of_file = (
    isinstance(error, OSError)
    and error.errno is not None
    and error.filename is None
  )
  try:
    sys.stdout.flush()
  except OSError as failed:
    _write_to_null(sys.stdout)
    # None and KeyboardInterrupt are no Exception.
    if isinstance(error, Exception) and not is_of_file:
      return None
    return f"standard output cannot be written ({failed.strerror})."
  if is_of_file and error.errno in _WRITE_ERRORS:
    return (
      f"standard output or a file cannot be read or written ({error.strerror})."
    )
  return None


def _write_to_null(stream: TextIO) -> None:
  devnull = os.open(os.devnull, os.O_WRONLY)
  os.dup2(devnull, stream.fileno())
  os.close(devnull)


def check_no_arguments(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    exit_with_error(
      ValueError(f"unexpected argument {argv[1]!r}, expected flags only.")
    )


@contextlib.contextmanager
def exit_on_error(
  *kinds: type[Exception], group: group_lib.Group | None = None
) -> Iterator[None]:
  """Ends the process with one line on errors that a user can cause.

  In a group of several processes, the line names the one that failed.
  """
  try:
    yield
  except kinds as error:
    exit_with_error(error, group)


def exit_with_error(
  error: Exception, group: group_lib.Group | None = None
) -> None:
  """Ends with one line on standard error; --verbosity=1 adds the traceback."""
  logging.debug("the error was raised here:", exc_info=error)
  several = group is not None and group.count > 1
  label = f"{group.label()}: " if several else ""
  text = _describe_failed_output(error) or str(error)
  line = to_plain_text(re.sub(r"\s*\n\s*", " ", text.strip()))
  if len(line) > _ERROR_START + _ERROR_END:
    line = f"{line[:_ERROR_START]} ... {line[-_ERROR_END:]}"
  sys.exit(f"error: {label}{line}")


def parse_counts(
  flag: str, values: Sequence[str | int], *, most: int = 2**20
) -> list[int]:
  """Parses the values of a flag that lists counts.

  Raises:
    ValueError: there is none, or one is not an integer from 1 to `most`.
  """
  if not values:
    raise ValueError(f"--{flag} is empty, expected integers. Set --{flag}=2,4.")
  for value in values:
    # Python converts no string of more than about 4,000 digits.
    digits = str(value)[:20]
    if not digits.isdecimal() or not 1 <= int(digits) <= most:
      raise ValueError(
        f"--{flag} has {value!r}, expected integers from 1 to {most:,}. "
        f"Set --{flag}=2,4."
      )
  return [int(value) for value in values]


def config_name() -> str:
  """Returns the given config's name with its variant: `two_device-imagenet`."""
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  path, _, variant = name.partition(":")
  stem = os.path.splitext(os.path.basename(path))[0]
  # A variant may be a path: that of a workdir.
  variant = os.path.basename(os.path.normpath(variant)) if variant else ""
  return f"{stem}-{variant}" if variant else stem


def check_path(path: str, *, flag: str, endings: Sequence[str]) -> None:
  """Checks that a file can be written, before anything is computed.

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
      f"the file {path!r} cannot be written: {folder!r} is not a folder that "
      f"you may write to. Set --{flag}."
    )


@contextlib.contextmanager
def start_group(
  distributed: flags.FlagHolder,
  timeout: flags.FlagHolder,
  *,
  same: Mapping[str, str],
  signals: preemption.Signals | None = None,
) -> Iterator[group_lib.Group]:
  """Connects the processes of a run, before JAX is first used.

  Args:
    distributed, timeout: from `define_distributed`, `define_start_timeout`.
    same: values that must be equal in all processes, by name.
    signals: the signals that end the run early; None: Python's own handling.
  """
  from alexnet_jax.distributed import cluster
  from alexnet_jax.distributed import group as group_lib

  with contextlib.ExitStack() as stack:
    with exit_on_error(ValueError, OSError):
      process = cluster.find_process(
        distributed.value, timeout_seconds=timeout.value
      )
      group = stack.enter_context(
        group_lib.start(
          process, same=same, timeout_seconds=timeout.value, signals=signals
        )
      )
    yield group


def choose_devices(
  count: int,
  *,
  set_by: str = "config.layout.mesh",
  simulated: int | None,
  topology_name: str | None,
) -> Sequence[jax.Device]:
  """Returns `count` devices or more to compile for, before JAX is first used.

  Args:
    set_by: the flag or field that `count` follows from, for an error.
    simulated, topology_name: the values of --simulate_devices and --topology.

  Raises:
    ValueError, ImportError, OSError: too few devices, no such slice, no libtpu,
      or JAX cannot start its devices.
  """
  from alexnet_jax.partition import mesh

  if topology_name:
    mesh.simulate_devices(1, only_cpu=True)
    devices = mesh.find_topology_devices(topology_name)
  else:
    mesh.simulate_devices(simulated or count, only_cpu=simulated is not None)
    devices = mesh.start_devices()
  if len(devices) < count:
    more = f"simulate them on the CPU with --simulate_devices={count}"
    if topology_name:
      more = "choose a larger slice with --topology"
    raise ValueError(
      f"{count} devices are needed, but there are {len(devices)} "
      f"({devices[0].device_kind}). Set {set_by} lower, or {more}."
    )
  return devices


def to_plain_text(text: str) -> str:
  """Escapes control characters, for names that users and files give."""
  return _CONTROL.sub(
    lambda found: found[0].encode("unicode_escape").decode(), text
  )


class PlainConsole(rich.console.Console):
  """A console that prints text as it is: no [markup], no :emoji:.

  Paths, and names in configs, data sets and variables, may look like these.
  """

  def __init__(self, **options):
    super().__init__(markup=False, emoji=False, **options)

  def render_str(self, text: str, **options) -> rich.text.Text:
    return super().render_str(to_plain_text(text), **options)


def make_console(
  group: group_lib.Group | None = None,
  kind: type[PlainConsole] = PlainConsole,
  file: TextIO | None = None,
) -> PlainConsole:
  """Makes the console; of several processes, only the first one prints.

  Args:
    file: to print to; None: standard output.
  """
  console = kind(quiet=group is not None and not group.is_first, file=file)
  if not console.is_terminal:
    console.width = PLAIN_WIDTH
  return console


def to_json(content: Any) -> str:
  """Formats strict JSON, in which a number that is not finite is null."""
  strict = json.loads(json.dumps(content), parse_constant=lambda _: None)
  return json.dumps(strict, indent=2, allow_nan=False)


def print_line(console: rich.console.Console, line: object) -> None:
  """Prints a line that is neither wrapped nor colored."""
  console.print(line, soft_wrap=True, highlight=False)


def print_table(
  console: rich.console.Console, table: rich.table.Table | rich.console.Group
) -> None:
  """Prints a table, or several, at full width, so that no number is cut."""
  unlimited = console.options.update_width(1000)
  needed = rich.measure.Measurement.get(console, unlimited, table).maximum
  # `Console.print(width=)` makes narrower than the terminal, never wider.
  options = console.options.update(
    width=max(console.width, needed), highlight=False
  )
  rendered = rich.segment.Segments(console.render(table, options))
  console.print(rendered, crop=False)


class PipeSafeConsole(PlainConsole):
  """A console that survives an output that can no longer be written.

  As after Ctrl-C in `main | tee`, on a full disk, in a terminal that is gone.
  """

  def _check_buffer(self) -> None:
    try:
      super()._check_buffer()
    except BlockingIOError:  # what shares the terminal has made it non-blocking
      os.set_blocking(sys.stdout.fileno(), True)
    except OSError as error:
      self._continue_without_output(error.strerror)

  def on_broken_pipe(self) -> None:
    """Continues without output; rich's own method ends the process."""
    self._continue_without_output(os.strerror(errno.EPIPE))

  def _continue_without_output(self, reason: str) -> None:
    _write_to_null(sys.stdout)
    line = (
      f"standard output cannot be written ({reason}): the run continues, and "
      "its reports are in metrics.jsonl\n"
    )
    try:
      os.write(sys.stderr.fileno(), line.encode())
    except OSError:  # `2>&1 | tee`: the same pipe
      _write_to_null(sys.stderr)


@contextlib.contextmanager
def mute_libraries() -> Iterator[None]:
  """Drops what C++ libraries print to standard output, as gloo does."""
  sys.stdout.flush()
  python_stdout, saved = sys.stdout, os.dup(1)
  with (
    open(os.devnull, "w") as devnull,
    os.fdopen(
      saved,
      "w",
      buffering=1,
      encoding=python_stdout.encoding,
      errors=python_stdout.errors,
    ) as shown,
  ):
    os.dup2(devnull.fileno(), 1)
    sys.stdout = shown
    try:
      yield
    finally:
      sys.stdout = python_stdout
      shown.flush()
      os.dup2(saved, 1)


def mute_gloo(
  group: group_lib.Group, devices: jax.sharding.Mesh
) -> contextlib.AbstractContextManager:
  """Mutes gloo; NCCL prints only if a user asks for it."""
  from alexnet_jax.partition import mesh

  is_gloo = group.count > 1 and mesh.is_simulated(devices)
  return mute_libraries() if is_gloo else contextlib.nullcontext()

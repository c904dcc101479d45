"""The text of --help: a command's docstring and all of its flags, by group."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap

from absl import flags

# The rest says what to run.
_GROUPS = {
  "Devices and processes": (
    *("simulate_devices", "topology", "distributed", "start_timeout_seconds"),
    "hang_timeout_seconds",
  ),
  "Compiler": ("xla_options", "implementations", "compilation_cache"),
  "Output": (
    *("format", "json", "picture", "chart", "predictions", "per_class"),
    *("out", "csv", "figures", "figures_format", "tracker"),
  ),
}
# Words for types of flags, where absl's are unclear.
_KINDS = {
  "config object": "FILE",
  "comma separated list of strings": "A,B,...",
  "multi path": "PATH",
}
# Of a line, without the two spaces before it.
_WIDTH = 78
_CONFIG_FIELD = """\
  --config.FIELD=VALUE
      Sets one field of the config, e.g. --config.batch_size=64;
      configs/default.py lists all fields."""
_FOOTER = """\
--verbosity=1 adds the traceback to an error; --helpfull lists the flags of
libraries too."""


def make_help() -> str:
  """Returns the help of the main module."""
  main = sys.modules["__main__"]
  spec = getattr(main, "__spec__", None)
  program = (
    f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
  )
  groups: dict[str, list[str]] = {
    name: [] for name in ("What to run", *_GROUPS)
  }
  for flag in find_flags():
    group = next(
      (name for name, names in _GROUPS.items() if flag.name in names),
      "What to run",
    )
    groups[group].append(_describe(flag))
    if flag.name == "config":
      groups[group].append(_CONFIG_FIELD)
  parts = [inspect.cleandoc(main.__doc__ or ""), f"usage: {program} [flags]"]
  parts += ["\n".join([f"{k}:", *v]) for k, v in groups.items() if v]
  return "\n\n".join([*parts, _FOOTER])


def find_flags() -> list[flags.Flag]:
  """Returns the flags of the main module that a user may set, in order."""
  defined = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  return [flag for flag in defined if flag.help.strip()]


def _describe(flag: flags.Flag) -> str:
  values = getattr(flag.parser, "enum_values", None)
  if flag.boolean:
    usage = f"--[no]{flag.name}"
  elif values:
    usage = f"--{flag.name}={'|'.join(values)}"
  else:
    kind = _KINDS.get(flag.flag_type(), flag.flag_type().upper())
    usage = f"--{flag.name}={kind}"
  # Without what absl adds: the values of an enum, "repeat this option".
  text = " ".join(
    flag.help.removeprefix(f"<{'|'.join(values or ())}>: ").split()
  )
  if values and len(usage) > _WIDTH:
    usage = f"--{flag.name}=NAME"
    text += f" One of {', '.join(values)}."
  text = re.sub(r";? repeat this option to specify a list of values$", "", text)
  if flag.default not in (None, False, "", []) and "Default: " not in text:
    text += f" Default: {flag.default_as_str.strip(chr(39))}."
  return f"  {usage}\n" + textwrap.indent(
    textwrap.fill(text, _WIDTH - 4), " " * 6
  )

"""Draws fields and flags of `main` with values of right and wrong types."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from flax import traverse_util

from alexnet_jax.network import catalog as wirings
from alexnet_jax.partition import catalog as layouts
from alexnet_jax.settings import fields as fields_lib
from configs import default

# Wrong types or far out of range, for most fields.
_WRONG = (
  *("-1", "0", "1", "1.5", "1000000000000000000", "-1000000000000000000"),
  *("1" + "0" * 400, "2147483648", "4294967296", "1e308", "-1e308", "1e-320"),
  *("1e400", "nan", "inf", "-inf", "-0.0", "0x10", "1_0", "'7'", "True"),
  *("False", "None", "true", "", " ", "\u00e4\u6f22\U0001f642", "x" * 5000),
  *("../x", "/", "%s%n{0}", "a\nb", "a\tb", "\udcff", "()", "(1,)", "(0, 0)"),
  *("(1, 2, 3)", "(1, 2, 3, 4)", "((1, 2), (3, 4))", "((((1,),),),)", "[1]"),
  *("{}", "{'a': 1}", "('data', 'data')", "('device',)", "('ensemble',)"),
  *("(nan,)", "(1e308,)", "(-1.0,)", "(None,)", "(True,)", "('a', 1)"),
  *("(10**18,)", "(" * 300, "lambda: 0", "__import__('os')", "1,2", "#", "="),
)
# The right type, and most of them in range somewhere.
_WORDS = (
  *("relu", "tanh", "sigmoid", "none", "column", "across", "batch", "he"),
  *("paper", "source", "test", "train", "validation", "digits", "mnist"),
  *("train[:5]", "train[3:3]", "validation[:50%]", "steps", "plateau"),
  *("exponential", "polynomial", "cosine", "stop", "replace", "channel"),
  *("image", "image_center", "dataset", "published", "float32", "bfloat16"),
  *("gather", "sum", "imagenet256/jpeg", "digits:9.9.9", "digits/none"),
  *(layout.name for layout in layouts.LAYOUTS),
  *(wiring.name for wiring in wirings.WIRINGS),
)
_NAMES = {
  "data.name": ("digits", "digits", "digits:1.0.0"),
  "data.train_split": ("train[:12]", "train[:5]", "validation[:4]", "test"),
  "data.validation_split": ("train[:5]", "validation[:7]", "validation[90%:]"),
  "layout.name": tuple(layout.name for layout in layouts.LAYOUTS),
  "network.wiring": tuple(wiring.name for wiring in wirings.WIRINGS),
}
_NUMBERS = (
  *("0", "0.1", "0.5", "0.9", "1", "2.5", "1e-3", "100", "0.999", "1e4"),
  "1e30",
)
_SMALL = ("0.0625", "0.125", "0.25", "0.5", "1")
_AXES = ("data", "column", "model", "device")
# Fields that make a run slow without being wrong: small, or far too large.
_COSTLY = (
  *("batch_size", "num_epochs", "network.width", "network.image_size"),
  *("network.num_classes", "data.stored_size", "data.threads", "ensemble"),
)
# Of a group that no config has until a field of it is set.
_LAYER_RULE = (
  *("optimizer.layers.conv1.lr_multiplier", "optimizer.layers.conv1.rates"),
  *("optimizer.layers.fc8.lr_multiplier", "optimizer.layers.fc8.weight_decay"),
)
_TOO_LONG = ("2147483648", "4294967296", "1_0")
_FLAGS = {
  "--workdir": ("", "../x", "workdir/a/b", "/proc/x", "/", "\udcff", "a\nb"),
  "--data_dir": ("", "../x", "/proc/x", "/dev/null", "\udcff", "~"),
  "--compilation_cache": ("", "off", "../x", "/proc/x", "/dev/null", "x://y"),
  "--simulate_devices": ("1", "2", "3", "8", "65"),
  "--distributed": ("auto", "off", "env"),
  "--xla_options": ("auto", "off"),
  "--start_timeout_seconds": ("1", "25", "1e9"),
  "--config": ("configs", "none.py", "none.py:imagenet", "", ":", "/dev/null"),
  # These do not exist.
  "--config.": ("1",),
  "--config.none": ("1",),
  "--config.network.width.x": ("1",),
  "--config.network[0]": ("1",),
  "--config.layout.mesh.ensemble": ("2",),
  "--config.seed.__class__": ("1",),
  "--noconfig.augment.flip": ("1",),
  # Whole groups.
  "--config.layout": ("{'name': 'x'}", "{}"),
  "--config.optimizer": ("{'a': 1}", "{}"),
  "--config.layout.mesh": ("{'a': 1}", "{}", "{'data': 2}"),
  "--nothing": ("1",),
}


def draw(
  seed: int, number: int, configs: Sequence[str]
) -> tuple[str, dict[str, str]]:
  """Draws what a run sets: one to three settings, some of them good.

  Args:
    seed: of all runs.
    number: of the run.
    configs: names of config files, one of which the run uses.

  Returns:
    The name of its config, and {flag: value}; flags of fields are
    `--config.NAME`.
  """
  rng = random.Random(f"{seed} {number}")
  config = rng.choice(configs)
  fields = default.get_config("digits").to_dict()
  fields = traverse_util.flatten_dict(fields, sep=".")
  fields |= dict.fromkeys(_LAYER_RULE)
  # The 32 placements of single layers are drawn less often.
  names = [name for name in fields if not re.match(r"layout\.(conv|fc)", name)]
  placements = [name for name in fields if name not in names]
  drawn = {}
  for _ in range(rng.choice((1, 1, 2, 3))):
    which = rng.random()
    if which < 0.1:
      flag = rng.choice([*_FLAGS])
      values = _FLAGS[flag] if rng.random() < 0.6 else _WRONG
      drawn[flag] = rng.choice(values)
    else:
      name = rng.choice(placements if which < 0.2 else names)
      drawn[f"--config.{name}"] = _draw_value(rng, name, fields[name])
  # Fields are set after the config, and groups before their fields.
  return config, dict(
    sorted(drawn.items(), key=lambda pair: pair[0].count("."))
  )


def _draw_value(rng: random.Random, name: str, value: object) -> str:
  """Draws a value of a field: wrong, of the right type, or in its range."""
  which = rng.random()
  if which < 0.35:
    return rng.choice(
      [x for x in _WRONG if name not in _COSTLY or x not in _TOO_LONG]
    )
  in_range = which < 0.85
  match fields_lib.find_field(name):
    case fields_lib.Choice(values=values) if in_range:
      return str(rng.choice(values))
    case fields_lib.Choice() | fields_lib.Text():
      return rng.choice(_NAMES.get(name, _WORDS) if in_range else _WORDS)
    case fields_lib.Number(integer=True):
      some = (value,) if isinstance(value, int) else (1, 2, 4)
      small = (1, 1, 2, 2, 3, 4, 6, 8, *some, *some, *some)
      return str(rng.choice(small if in_range else (0, 5, 64, 77)))
    case fields_lib.Number():
      return rng.choice(_SMALL if name in _COSTLY else _NUMBERS)
    case fields_lib.Tuple(parts=(fields_lib.Text(),)):
      return str(tuple(rng.sample(_AXES, rng.choice((0, 1, 1, 2)))))
  # In the right order, or in any.
  numbers = [round(rng.uniform(0, 4), rng.choice((0, 2))) for _ in "123"]
  numbers = sorted(numbers) if in_range else numbers
  match name.rpartition(".")[2]:
    case "mean":
      return str(tuple(50 * number for number in numbers))
    case "pooling":
      return str(tuple(int(number) + 1 for number in numbers[:2]))
    case "rates":
      return str(tuple((number, number / 100) for number in numbers))
  return str(tuple(numbers[: rng.choice((0, 1, 2, 3))]))


def is_named(flag: str, line: str) -> bool:
  """Returns whether a line of error names a flag, or a field by its full name.

  The fields of a layout describe it together: a line about one of them may be
  the fault of another.
  """
  if not flag.startswith("--config."):
    return flag.lstrip("-") in line
  name = flag.removeprefix("--config.")
  if name.startswith("layout"):
    return "config.layout" in line
  return name in line if name else flag in line

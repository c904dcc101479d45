import importlib
import math
import pathlib

import pytest
from flax import traverse_util

from alexnet_jax.settings import fields, settings
from configs import default

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts)
  for path in sorted((ROOT / "configs").rglob("*.py"))
  if path.stem not in ("__init__", "ablations")
]
WHOLE = fields.Whole(least=1, most=8)
SHARE = fields.Number(most=1.0, below=True)
ABOVE_0 = fields.Number(above=True)
PAIR = fields.Tuple((WHOLE, WHOLE), "two")
DROPS = fields.Epochs(ABOVE_0, "rising")
RATES = fields.Epochs(fields.Tuple((SHARE, SHARE), "two"), "pairs")


def flat(config):
  return traverse_util.flatten_dict(config.to_dict(), sep=".")


@pytest.mark.parametrize("variant", default.VARIANTS)
def test_table_has_every_field_of_the_default_and_no_other(variant):
  names = {
    name
    for name in flat(default.get_config(variant))
    if not name.startswith("layout.mesh.")
  }
  assert names == fields.FIELDS.keys()


@pytest.mark.parametrize("module", CONFIGS)
def test_every_config_has_values_that_the_table_takes(module):
  fields.check(flat(importlib.import_module(module).get_config()))


@pytest.mark.parametrize(
  ("kind", "good", "bad"),
  [
    (WHOLE, [1, 8], [0, 9, -(10**400), 10**400]),
    (SHARE, [0, 0.0, 0.999], [1, -1e-9, math.nan, math.inf, 1e-320]),
    # 1e39 is more than float32 holds, and 1e-39 less than 0 to many a device.
    (ABOVE_0, [1e-37, 1, 1e38], [0, -1.0, 1e39, 1e-39, math.nan, math.inf]),
    (fields.Choice((1, 10)), [1, 10], [2]),
    (fields.Text(), ["train[:9]"], ["", "a\nb", "x" * 9999, "\udcff"]),
    (fields.Axes(), [(), ("a", "b")], [(1,), ("",), (("a",),)]),
    (
      PAIR,
      [(3, 2), [1, 1]],
      [(), (1,), (1, 2, 3), (0, 1), (1.0, 1), (True, 1)],
    ),
    (DROPS, [(), (1,), (1.5, 2)], [(2, 1), (1, 1), ("1",), (None,), ((1,),)]),
    (RATES, [(), ((0, 0.1),)], [(0, 0.1), ((0.5, 0), (0.1, 0)), ((0,),)]),
  ],
)
def test_kind_takes_what_is_in_its_range(kind, good, bad):
  for value in good:
    assert fields.is_kind(kind, value) and kind.accepts(value), value
  for value in bad:
    assert fields.is_kind(kind, value) and not kind.accepts(value), value


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("batch_size", True),
    ("batch_size", 4.0),
    ("batch_size", None),
    ("num_epochs", "1"),
    ("network.init", 1),
    ("augment.flip", 1),
    ("augment.mean", 77.0),
    ("layout.mesh.data", 2.0),
  ],
)
def test_value_of_another_kind_is_a_type_error(name, value):
  values = flat(default.get_config()) | {name: value}
  with pytest.raises(
    TypeError, match=f"{name} is .* Set config.{name}"
  ) as said:
    fields.check(values)
  assert "\n" not in str(said.value)


def test_config_without_a_field_or_with_one_of_its_own_is_refused():
  config = default.get_config()
  with config.unlocked():
    config.network.widht = 1.0
  with pytest.raises(ValueError, match="a field network.widht, which nothing"):
    settings.check(config)
  del config.network.widht, config.network.width
  with pytest.raises(ValueError, match="no field network.width, expected"):
    settings.check(config)
  with pytest.raises(TypeError, match="None, expected an ml_collections"):
    settings.check(None)


def test_long_value_is_shortened():
  values = flat(default.get_config()) | {"data.name": "x" * 5000}
  with pytest.raises(ValueError, match="Set config.data.name") as said:
    fields.check(values)
  assert len(str(said.value)) < 300

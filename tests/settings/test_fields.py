import importlib
import math

import pytest
from flax import traverse_util

from alexnet_jax.settings import fields, settings
from configs import default
from tests import processes

CONFIGS = [
  ".".join(path.relative_to(processes.ROOT).with_suffix("").parts)
  for path in sorted((processes.ROOT / "configs").rglob("*.py"))
  if path.stem not in ("__init__", "ablations")
]
INTEGER = fields.Number(integer=True, least=1, most=8)
FRACTION = fields.Number(most=1, below=True)
ABOVE_0 = fields.Number(above=True)
AXES = fields.FIELDS["layout.axes"]
PAIR = fields.Tuple(parts=(INTEGER, INTEGER), expected="two")
EPOCHS = fields.Tuple(
  parts=(ABOVE_0,), any_length=True, rising=True, expected="rising"
)
RATES = fields.Tuple(
  parts=(fields.Tuple(parts=(FRACTION, FRACTION), expected="two"),),
  any_length=True,
  rising=True,
  expected="pairs",
)


def flat(config):
  return traverse_util.flatten_dict(config.to_dict(), sep=".")


@pytest.mark.parametrize("variant", default.VARIANTS)
def test_table_has_every_field_of_the_default_and_no_other(variant):
  names = flat(default.get_config(variant)).keys()
  axes = {name for name in names if name.startswith("layout.mesh.")}
  assert names - axes == fields.FIELDS.keys()


@pytest.mark.parametrize("module", CONFIGS)
def test_every_config_has_values_that_the_table_accepts(module):
  fields.check(flat(importlib.import_module(module).get_config()))


@pytest.mark.parametrize(
  ("kind", "good", "bad"),
  [
    (INTEGER, [1, 8], [0, 9, -(10**400), 10**400]),
    (FRACTION, [0, 0.0, 0.999], [1, -1e-9, math.nan, math.inf, 1e-320]),
    # 1e39 is more than float32 holds, and 1e-39 less than 0 to many a device.
    (ABOVE_0, [1e-37, 1, 1e38], [0, -1.0, 1e39, 1e-39, math.nan, math.inf]),
    (fields.Choice(values=(1, 10)), [1, 10], [2]),
    (fields.Text(), ["train[:9]"], ["", "a\nb", "x" * 9999, "\udcff"]),
    (AXES, [(), ("a", "b")], [(1,), ("",), (("a",),)]),
    (
      PAIR,
      [(3, 2), [1, 1]],
      [(), (1,), (1, 2, 3), (0, 1), (1.0, 1), (True, 1)],
    ),
    (EPOCHS, [(), (1,), (1.5, 2)], [(2, 1), (1, 1), ("1",), (None,), ((1,),)]),
    (RATES, [(), ((0, 0.1),)], [(0, 0.1), ((0.5, 0), (0.1, 0)), ((0,),)]),
  ],
)
def test_kind_accepts_the_values_in_its_range(kind, good, bad):
  for value in good:
    assert kind.has_type(value) and kind.accepts(value), value
  for value in bad:
    assert kind.has_type(value) and not kind.accepts(value), value


@pytest.mark.parametrize(
  ("name", "value"),
  [
    *(("batch_size", value) for value in (True, 4.0, None)),
    *(("num_epochs", "1"), ("network.init", 1), ("augment.flip", 1)),
    *(("augment.mean", 77.0), ("layout.mesh.data", 2.0)),
  ],
)
def test_value_of_another_type_is_a_type_error(name, value):
  values = flat(default.get_config()) | {name: value}
  message = f"{name} is .* Set config.{name}"
  with pytest.raises(TypeError, match=message) as error:
    fields.check(values)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "value", "expected"),
  [
    ("batch_size", 0, "an integer >= 1 and <= 1,048,576"),
    ("augment.scale", 0.0, "a finite float32 > 0"),
    ("augment.color_noise", math.nan, "a finite float32 >= 0"),
    ("augment.mean", (1.0, 2.0, 256.0), "None or three numbers"),
    ("augment.mean_from", "crop", "one of channel, image, image_center"),
    ("layout.mesh.anything", 0, "None or an integer >= 1"),
    ("network.columns", 0, "None or an integer >= 1"),
    ("network.num_classes", 0, "an integer >= 1"),
    ("network.dropout_rate", 1.0, "a number >= 0 and < 1"),
    ("network.batch_norm_momentum", 1.0, "a number >= 0 and < 1"),
    ("network.lrn_k", 0.0, "a finite float32 > 0"),
    ("network.pooling", (3,), r"None or \(window, stride\)"),
  ],
)
def test_value_out_of_range_is_a_value_error_in_words(name, value, expected):
  values = flat(default.get_config()) | {name: value}
  with pytest.raises(ValueError, match=f"{name} is .*, expected {expected}"):
    fields.check(values)


def test_axis_that_no_layer_uses_is_refused():
  config = default.get_config()
  config.layout.name, config.layout.mesh.model = "two_column", 2
  with pytest.raises(ValueError, match=r"model is 2, .* one of column\. Set"):
    settings.check(config)
  config.layout.fc6.features = ("column", "model")
  _, layout = settings.check(config)
  assert dict(layout.mesh) == {"column": 2, "model": 2}


def test_only_fields_that_do_not_change_results_may_change():
  always = fields.find_changeable()
  assert {"layout.mesh", "layout.fc8.fsdp", "max_to_keep"} <= always
  assert not always & {"batch_size", "seed", "network.width", "data.seed"}
  # The rate falls until the run ends, or follows the validations.
  assert always - fields.find_changeable("cosine") == {"num_epochs"}
  validations = {"eval_every_steps", "validation_views"}
  assert always - fields.find_changeable("plateau") == validations


def test_processes_may_differ_in_their_threads_only():
  config = default.get_config()
  shared = settings.find_shared_fields(config)
  absent = {f"config.{name}" for name in flat(config)} - shared.keys()
  assert absent == {"config.data.threads"}


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
  with pytest.raises(ValueError, match="Set config.data.name") as error:
    fields.check(values)
  assert len(str(error.value)) < 300

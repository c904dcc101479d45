import dataclasses
import importlib
import math
import re

import pytest
from flax import traverse_util

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import fields, settings
from configs import default
from tests import processes

CONFIGS = [
  ".".join(path.relative_to(processes.ROOT).with_suffix("").parts)
  for path in sorted((processes.ROOT / "configs").rglob("*.py"))
  if path.stem not in ("__init__", "ablations", "stored")
]
Placement = layout_lib.Placement
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
  groups = re.compile(r"layout\.(mesh|conv|fc)\.")
  in_groups = {name for name in names if groups.match(name)}
  assert names - in_groups == fields.FIELDS.keys()
  assert all(map(fields.find_field, names))
  for kind in layout_lib.KINDS:
    placement = {field.name for field in dataclasses.fields(Placement)}
    assert config_fields(in_groups, f"layout.{kind}.") == placement


def config_fields(names, group):
  """Names of the fields in a group."""
  found = [name for name in names if name.startswith(group)]
  return {name.removeprefix(group) for name in found}


def test_rows_and_placements_have_the_fields_of_their_classes():
  for kind, group in (
    (Placement, "layout.stem"),
    (wiring.Layer, "network.layers.stem"),
    (wiring.Pool, "network.layers.stem.pool"),
    (wiring.Lrn, "network.layers.stem.lrn"),
    (wiring.Lrn, "network.layers.stem.map_lrn"),
  ):
    names = {field.name for field in dataclasses.fields(kind)}
    names -= {"name", "pool", "lrn", "map_lrn"}
    assert fields._find_table(group).keys() == names
    field = fields.find_field(f"{group}.{names.pop()}")
    assert field.optional and field.has_type(None)


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
    *(("augment.channel_scale", 58.0), ("augment.color_order", None)),
    *(("augment.mean", 77.0), ("layout.mesh.data", 2.0)),
    *(("layout.fc.batch", "data"), ("layout.stem.inputs", {"a"})),
    *(("layout.stem.overlap_gather", 1), ("layout.stem.fsdp", 3)),
    *(("network.layers.stem.features", 8.0), ("network.order", "stem")),
    *(("network.layers.stem.pool.window", "3"), ("network.lrn_k", "2")),
    *(("network.layers.stem.lrn.beta", True), ("layout.stem", ("data",))),
    *(("network.layers.stem.pool", None), ("network.layers", 3)),
    *(("optimizer.layers.stem", 0), ("optimizer.layers.stem.rates", 0.1)),
    *(("optimizer.layers.stem.lr_multiplier", "0"), ("optimizer.layers", 3)),
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
    ("augment.channel_scale", (1.0, 2.0, 0.0), "None or three n"),
    ("augment.color_order", "grb", "one of rgb, bgr"),
    ("augment.mean_from", "crop", "one of channel, image, image_center"),
    ("layout.mesh.anything", 0, "None or an integer >= 1"),
    ("network.columns", 0, "None or an integer >= 1"),
    ("network.num_classes", 0, "None or an integer >= 1"),
    ("network.dropout_rate", 1.0, "a number >= 0 and < 1"),
    ("network.batch_norm_momentum", 1.0, "a number >= 0 and < 1"),
    ("network.lrn_k", 0.0, "None or a finite float32 > 0"),
    ("network.image_channels", 2, "None or one of 1, 3"),
    ("network.order", ("a", "b", "a"), "None or a tuple of names of layers"),
    ("layout.stem.batch", (1,), "None or a tuple of names of mesh axes"),
    ("network.layers.stem.reads", "both", "None or one of image, own, all"),
    ("network.layers.stem.stride", 0, "None or an integer >= 1"),
    ("network.layers.stem.padding", (2,), r"None or zeros \(before, after\)"),
    ("network.layers.stem.order", ("pooling",) * 3, "None or activation, norm"),
    ("network.layers.stem.dropout_rate", 1.0, "None or a number >= 0 and < 1"),
    ("network.layers.stem.kernel_std", -0.1, "None or a finite float32 >= 0"),
    ("network.layers.stem.pool.kind", "mean", "None or one of none, max, aver"),
    ("network.layers.stem.lrn.size", 0, "None or an integer >= 1"),
    ("network.pooling", (3,), r"None or \(window, stride\)"),
  ],
)
def test_value_out_of_range_is_a_value_error_in_words(name, value, expected):
  values = flat(default.get_config()) | {name: value}
  with pytest.raises(ValueError, match=f"{name} is .*, expected {expected}"):
    fields.check(values)


@pytest.mark.parametrize("field", ["layout.fc.batch", "layout.stem.inputs"])
def test_forgotten_comma_is_told(field):
  values = flat(default.get_config()) | {field: "data"}
  advice = rf"Set config.{field}=\('data',\): a comma makes the tuple.$"
  with pytest.raises(TypeError, match=advice):
    fields.check(values)


@pytest.mark.parametrize("field", ["layout.axes", "layout.stem.inputs"])
def test_names_in_one_text_are_told_apart(field):
  # As ml_collections reads column,data on a command line.
  values = flat(default.get_config()) | {field: ("column,data",)}
  advice = rf"Set config.{field}=\('column', 'data'\); on the command line"
  with pytest.raises(ValueError, match=advice):
    fields.check(values)


@pytest.mark.parametrize(
  ("field", "expected"),
  [
    ("layout.stem.inptus", "expected one of batch, outputs, inputs"),
    (
      "network.layers.stem.featurs",
      "expected one of reads, .*, map_lrn. Re",
    ),
    ("network.layers.stem", "group with any of the .* pool, lrn, map_lrn. Set"),
    ("network.layers.stem.pool.side", "expected one of window, stride, kind"),
    ("layout.stem.arrive", r"gone: write layout.stem.outputs \(for gather\)"),
    ("layout.fc.arrive", r"\.inputs \(for sum\) or .features \(for fewest\)."),
  ],
)
def test_field_that_a_layer_does_not_have_is_refused(field, expected):
  values = flat(default.get_config()) | {field: "sum"}
  with pytest.raises(
    (ValueError, TypeError), match=f"{field}.*{expected}"
  ) as error:
    fields.check(values)
  assert "\n" not in str(error.value)


def test_axis_that_no_layer_uses_is_refused():
  config = default.get_config()
  config.layout.name, config.layout.mesh.model = "two_column", 2
  with pytest.raises(ValueError, match=r"model is 2, .* one of column\. Set"):
    settings.check(config)
  config.layout.fc6 = {"features": ("column", "model")}
  _, layout = settings.check(config)
  assert dict(layout.mesh) == {"column": 2, "model": 2}


def test_only_fields_that_do_not_change_results_may_change():
  always = fields.find_changeable()
  assert {"layout", "max_to_keep"} <= always
  assert not always & {"batch_size", "seed", "network.width", "data.seed"}
  assert not [name for name in always if name.startswith("network")]
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

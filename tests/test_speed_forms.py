"""Operations in their forms: all are measured, and the faster one is named."""

import json

import pytest

from alexnet_jax.network import forms as forms_lib
from alexnet_jax.speed import form_tables, forms
from tests import small_step


@pytest.fixture(scope="module")
def found():
  program = small_step.make_program("one_device")
  return forms.measure(program, rounds=1, options={})


def test_every_operation_is_measured_in_every_form_where_it_is(found):
  layers = {
    operation: list(of_layers) for operation, of_layers in found.seconds.items()
  }
  assert layers == {
    "pool": ["conv1", "conv2"],
    "norm": ["conv1", "conv2"],
    "bias": ["conv1", "conv2", "fc8"],
    "conv1": ["conv1"],
    "columns": ["conv2"],  # the two of one device
  }
  for operation, of_layers in found.seconds.items():
    for of_forms in of_layers.values():
      assert tuple(of_forms) == forms_lib.CHOICES[operation]
      assert all(seconds[0] > 0 for seconds in of_forms.values())


def test_table_and_data_name_the_form_that_is_taken(found):
  json.dumps(form_tables.to_data(found))
  table = form_tables.to_table(found)
  columns = [list(column.cells) for column in table.columns]
  rows = list(zip(*columns, strict=True))
  taken = {row[0]: row[2] for row in rows if "taken" in row[-1]}
  assert taken == {
    name: getattr(found.taken, name) for name in forms_lib.CHOICES
  }


def test_forms_that_are_faster_by_a_tenth_are_named():
  of_pool = {"window": [2.0, 9.0, 3.0], "slices": [1.0]}
  found = forms.Speed(
    seconds={
      "pool": {"conv1": of_pool, "conv2": of_pool},
      "bias": {"conv1": {"sum": [1.0], "product": [0.95]}},
    },
    batch_size=1,
    devices=1,
    platform="gpu",
    taken=forms_lib.PLAIN,
  )
  assert found.total("pool", "window") == 6.0
  assert found.fastest("bias") == "product"
  assert found.better() == {"pool": "slices"}
  assert "--forms=pool=slices;" in form_tables.to_lines(found)[-1]

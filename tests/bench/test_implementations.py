"""Operations in their forms: all are measured, and the faster one is named."""

import json

import jax
import pytest

from alexnet_jax.bench import implementations as bench_implementations
from alexnet_jax.network import implementations
from tests import small_step


@pytest.fixture(scope="module")
def program():
  return small_step.make_program("one_device")


def test_every_operation_is_compared_in_every_form_where_it_is(program):
  cases = bench_implementations.find_cases(program)
  where = {
    "pool": ["conv1", "conv2"],
    "norm": ["conv1", "conv2"],
    "bias": ["conv1", "conv2", "fc8"],
    "conv1": ["conv1"],
    "conv3x3": [],
    "columns": ["conv2"],  # the two of one device
  }
  assert list(cases) == [
    (operation, layer, form)
    for operation, known in implementations.CHOICES.items()
    for layer in where[operation]
    for form in known
  ]
  for (operation, layer, form), (function, blocks) in cases.items():
    plain = cases[operation, layer, implementations.CHOICES[operation][0]]
    assert blocks == plain[1]
    found, expected = (
      jax.eval_shape(either, *blocks) for either in (function, plain[0])
    )
    assert found == expected
    # Each form is another program.
    same = str(jax.make_jaxpr(function)(*blocks)) == str(
      jax.make_jaxpr(plain[0])(*blocks)
    )
    assert same == (form == implementations.CHOICES[operation][0])


@pytest.mark.slow
def test_table_and_data_name_the_form_that_is_taken(program):
  found = bench_implementations.measure(program, rounds=1, options={})
  for of_layers in found.seconds.values():
    for of_forms in of_layers.values():
      assert all(seconds[0] > 0 for seconds in of_forms.values())
  json.dumps(bench_implementations.show(found).data)
  table = bench_implementations.show(found).tables[0]
  columns = [list(column.cells) for column in table.columns]
  rows = list(zip(*columns, strict=True))
  taken = {row[0]: row[2] for row in rows if "taken" in row[-1]}
  assert taken == {name: getattr(found.taken, name) for name in found.seconds}


def test_forms_that_are_faster_by_a_tenth_are_named():
  of_pool = {"window": [2.0, 9.0, 3.0], "slices": [1.0]}
  found = bench_implementations.Speed(
    seconds={
      "pool": {"conv1": of_pool, "conv2": of_pool},
      "bias": {"conv1": {"sum": [1.0], "product": [0.95]}},
    },
    batch_size=1,
    devices=1,
    platform="gpu",
    taken=implementations.PLAIN,
    rule=implementations.PLAIN,
  )
  assert found.total("pool", "window") == 6.0
  assert found.fastest("bias") == "product"
  assert found.better() == {"pool": "slices"}
  assert (
    "--implementations=pool=slices;"
    in bench_implementations.show(found).lines[-1]
  )

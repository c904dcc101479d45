"""All implementations of operations are measured, and faster ones are named."""

import json

import jax
import pytest

from alexnet_jax.bench import implementations as bench_implementations
from alexnet_jax.bench import report
from alexnet_jax.network import implementations
from tests import build


@pytest.fixture(scope="module")
def program():
  return build.make_short_program("one_device")


def test_every_implementation_is_measured_in_the_layers_that_have_it(program):
  cases = bench_implementations.make_cases(program)
  layers = {
    "pool": ["conv1", "conv2"],
    "bias": ["conv1", "conv2", "fc8"],
    "conv3x3": [],
  }
  assert list(cases) == [
    (operation, layer, name)
    for operation, names in implementations.CHOICES.items()
    for layer in layers[operation]
    for name in names
  ]
  for (operation, layer, name), (function, blocks) in cases.items():
    first = implementations.CHOICES[operation][0]
    plain, same_blocks = cases[operation, layer, first]
    assert blocks == same_blocks
    found, expected = (
      jax.make_jaxpr(either, return_shape=True)(*blocks)
      for either in (function, plain)
    )
    assert found[1] == expected[1]
    # Each implementation is another program.
    assert (str(found[0]) == str(expected[0])) == (name == first)


@pytest.mark.slow
def test_table_and_data_name_the_implementation_that_is_used(program):
  found = bench_implementations.measure(program, rounds=1, options={})
  for layers in found.seconds.values():
    for times in layers.values():
      assert all(seconds[0] > 0 for seconds in times.values())
  json.dumps(report.to_data(found))
  (table,) = found.tables()
  rows = zip(*(column.cells for column in table.columns), strict=True)
  used = {row[0]: row[2] for row in rows if "used" in row[-1]}
  assert used == {name: getattr(found.used, name) for name in found.seconds}


def test_implementations_that_are_faster_by_a_tenth_are_named(program_facts):
  pool = {"window": [2.0, 9.0, 3.0], "slices": [1.0]}
  found = bench_implementations.ImplementationTimes(
    **program_facts,
    seconds={
      "pool": {"conv1": pool, "conv2": pool},
      "bias": {"conv1": {"sum": [1.0], "product": [0.95]}},
    },
    used=implementations.PLAIN,
    rule=implementations.PLAIN,
  )
  assert found.total_seconds["pool"] == {"window": 6.0, "slices": 2.0}
  assert found.faster == {"pool": "slices"}  # bias is faster by less
  assert "--implementations=pool=slices;" in found.lines()[-1]

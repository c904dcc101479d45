"""Drawn networks on drawn layouts are refused, or compute as one device."""

import itertools

import pytest

from alexnet_jax.settings import settings
from configs import default
from tests import cases as cases_lib
from tests import random_cases


def check_cases(cases):
  """Runs cases; those that go wrong are printed as literals."""
  outcomes = [(case, cases_lib.run_case(case)) for case in cases]
  wrong = [
    cases_lib.describe(case, outcome)
    for case, outcome in outcomes
    if outcome.kind == "wrong"
  ]
  assert not wrong, "\n".join(wrong)


# 60 cases in 12 networks.
@pytest.mark.parametrize("seed", range(12))
def test_short_network_is_refused_or_computes_as_one_device(seed):
  check_cases(random_cases.draw_cases(seed, cases=5, most_layers=3))


# 288 cases; those of the catalog are in test_random_catalog.py.
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 136))
def test_network_is_refused_or_computes_as_one_device(seed):
  check_cases(random_cases.draw_cases(seed, cases=8))


def test_drawn_network_and_layout_survive_their_way_through_a_config():
  for case in itertools.chain.from_iterable(
    random_cases.draw_cases(seed, cases=2) for seed in range(200, 216)
  ):
    problem = case.problem
    try:
      layout = case.make_layout()
    except ValueError:  # it is spoiled
      continue
    config = default.get_config("digits")
    default.use_wiring(config, problem.table)
    default.use_layout(config, layout)
    config.network.update(problem.size)
    network, made = (
      settings.make_network(config),
      settings.make_layout(config, settings.make_network(config)),
    )
    assert network == problem.network
    assert list(made.mesh.items()) == list(layout.mesh.items())
    for layer in network.layers:
      assert made.placement(layer) == layout.placement(layer)

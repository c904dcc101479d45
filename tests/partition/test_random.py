"""Drawn networks on drawn layouts are refused, or compute as one device."""

import collections
import dataclasses
import itertools
import types

import numpy as np
import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.program import compiled_step
from alexnet_jax.settings import settings
from configs import default
from tests import build, random_cases
from tests import cases as cases_lib

# Networks of up to three layers, and of up to six; with those of the catalog
# more than 400 cases.
QUICK, SHORT, LONGER = range(1, 3), range(3, 13), range(100, 132)


def draw_short(seed):
  cases = 5 if seed in QUICK else 8
  return random_cases.draw_cases(seed, cases=cases, most_layers=3)


def draw_longer(seed):
  return random_cases.draw_cases(seed, cases=8)


@pytest.mark.parametrize("seed", [*QUICK, *build.slow(*SHORT)])
def test_short_network_is_refused_or_computes_as_one_device(seed):
  cases_lib.check_cases(draw_short(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", LONGER)
def test_network_is_refused_or_computes_as_one_device(seed):
  cases_lib.check_cases(draw_longer(seed))


def test_most_cases_are_not_refused():
  accepted = collections.Counter()
  for case in itertools.chain(
    *map(draw_short, (*QUICK, *SHORT)),
    *map(draw_longer, LONGER),
    *map(random_cases.draw_of_catalog, wirings.WIRINGS),
  ):
    accepted[random_cases.is_accepted(case)] += 1
  assert accepted.total() >= 400
  assert accepted[True] >= 250


# A layout of one axis, which splits the images and then the units.
HALVES = {
  "mesh": {"half": 2},
  "conv": {"batch": ("half",)},
  "fc": {"inputs": ("half",)},
  "layers": {"top": {"outputs": ("half",)}},
}


@pytest.fixture(scope="module")
def gray():
  """A case of gray images, which are cropped, mirrored and changed in color."""
  Layer = wiring.Layer
  table = wiring.Wiring(
    name="gray",
    columns=1,
    image_channels=1,
    layers=(
      Layer(name="stem", reads="image", features=4, window=3, stride=2),
      Layer(name="hidden", reads="all", features=8),
      Layer(name="top", reads="all", features=8, activation="linear"),
    ),
  )
  size = {"image_size": 9, "num_classes": 8, "init": "he"}
  return cases_lib.Case(cases_lib.Problem(table, size, augments=True), HALVES)


def test_augmented_gray_images_are_those_of_one_device(gray):
  outcome = cases_lib.run_case(gray)
  assert outcome.kind == "ran", outcome.detail
  assert outcome.detail == "batch + outputs + inputs"


def replace(case, **layout):
  return dataclasses.replace(case, layout={**case.layout, **layout})


def test_case_that_is_wrong_is_printed_and_one_that_is_refused_is_not(
  gray, monkeypatch
):
  refused = replace(gray, conv={"batch": ("half",), "inputs": ("half",)})
  outcome = cases_lib.run_case(refused)
  assert outcome.kind == "refused" and "half" in outcome.detail
  with pytest.raises(AssertionError, match="0 of 2 cases ran, expected 1"):
    cases_lib.check_cases([refused, refused])

  def send_too_much(program, *, options):
    parts = dict.fromkeys(
      ("missing", "notes", "traced", "compiled", "plan"), ()
    )
    found = types.SimpleNamespace(unplanned=("an all_gather",), **parts)
    return None, found

  with monkeypatch.context() as broken:
    broken.setattr(compiled_step, "compile_step", send_too_much)
    with pytest.raises(
      AssertionError, match="an all_gather\n  Case(.|\n)*gray"
    ):
      cases_lib.check_cases([gray, refused])

  def fail(self, layout, **dtypes):
    raise ValueError("it does not fit")

  monkeypatch.setattr(cases_lib.Problem, "make_program", fail)
  outcome = cases_lib.run_case(gray)
  assert outcome.kind == "wrong"
  assert "names no layer and no axis: it does not fit" in outcome.detail


def test_numbers_that_differ_are_found_by_their_names():
  def make(factor):
    kernel = np.arange(6.0) * factor
    return {"losses": np.array([2.0, 1.0]), "state": {"fc": {"kernel": kernel}}}

  assert cases_lib.find_differences(make(1 + 1e-10), make(1)) == []
  (line,) = cases_lib.find_differences(make(1 + 1e-6), make(1))
  assert line == "state['fc']['kernel'] differs by 1.0e-06"


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
    config.optimizer.layers = {
      name: {"lr_multiplier": 0.0} for name in problem.frozen
    }
    network, made = (
      settings.make_network(config),
      settings.make_layout(config, settings.make_network(config)),
    )
    assert network == problem.network
    assert list(made.mesh.items()) == list(layout.mesh.items())
    for layer in network.layers:
      assert made.placement(layer) == layout.placement(layer)

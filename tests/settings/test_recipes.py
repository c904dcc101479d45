"""The recipes and the ablations: they are valid, and layouts agree on them."""

import importlib

import pytest
from flax import traverse_util

from alexnet_jax.settings import settings
from benchmarks.results import recipes
from configs import ablations, default


def flat(config):
  return traverse_util.flatten_dict(config.to_dict(), sep=".")


def configs(name):
  """Returns the configs of a name, for the digits and for ImageNet."""
  if name in recipes.RECIPES:
    module = importlib.import_module(f"configs.recipes.{name}")
    return [module.get_config(variant) for variant in ("digits", "imagenet")]
  if name == "lenet5":
    return [recipes.make_config(name)]
  return [ablations.get_config(name + size) for size in ("", ",imagenet")]


@pytest.mark.parametrize("name", recipes.list_configs())
def test_config_is_valid_under_both_layouts(name):
  for config in configs(name):
    settings.check(config)
    for layout in recipes.LAYOUTS:
      config.layout.name = layout
      config.layout.mesh.update({"data": None, "column": None, "model": None})
      settings.check(config)


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_ablation_differs_from_the_run_of_2012_in_its_field_only(name):
  full = flat(default.get_config("imagenet"))
  ablated = flat(ablations.get_config(f"{name},imagenet"))
  differing = {field for field in full if ablated[field] != full[field]}
  assert differing == set(ablations.ABLATIONS[name])


def test_shortened_recipe_scales_all_epochs():
  config = importlib.import_module("configs.recipes.source").get_config()
  default.shorten(config, 9.1)  # of 91
  assert config.optimizer.drop_epochs == pytest.approx((2.5, 5.1, 7.9))
  assert config.augment.color_noise_until_epoch == pytest.approx(6.7)
  (slow, rate), (frozen, zero) = config.optimizer.layers.conv1.rates
  assert (slow, frozen) == pytest.approx((6.7, 7.2))
  assert (rate, zero) == (1e-5, 0.0)


def test_unknown_ablation_lists_the_known_ones():
  with pytest.raises(ValueError, match="'gelu', expected one of tanh, sigmoid"):
    ablations.get_config("gelu")
  with pytest.raises(ValueError, match="'imagnet' of the config"):
    ablations.get_config("tanh,imagnet")

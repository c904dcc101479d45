"""The full-size network at its start, beside what is published of it."""

import math

import jax
import numpy as np
import pytest

from alexnet_jax.program import compiled_step
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from benchmarks.results import precision
from configs import default


@pytest.mark.slow
def test_training_starts_as_that_of_2014_did():
  config = default.get_config("imagenet")
  config.batch_size = 32
  network, layout = settings.check(config)
  program = run_lib.make_program(config, network, layout)
  init_key, step_key = program.make_keys(0)
  state = program.init(init_key)
  weights = {
    name: float(np.mean(np.abs(layer["kernel"])))
    for name, layer in state.parameters.items()
  }
  # Reference section 9, cuda-convnet2's wiki; there fc6 is .0072, a network
  # whose fc6 has other initial values. Of N(0, std) it is std * sqrt(2 / pi).
  assert weights["conv1"] == pytest.approx(0.0079, rel=0.02)
  assert weights["conv3"] == pytest.approx(0.0236, rel=0.02)
  assert weights["fc6"] == pytest.approx(
    0.01 * math.sqrt(2 / math.pi), rel=0.01
  )
  compiled, _ = compiled_step.compile_step(program)
  images, labels = precision.make_set(side=256)
  batch = jax.device_put((images[:32], labels[:32]), program.batch_shardings)
  _, totals = compiled(state, step_key, *batch)
  # There 7.16 over the first 3,072 images; these are 32 crops of two
  # photographs, whose logits hardly differ: two such sets gave 7.34 and 7.50.
  assert float(totals[0]) / 32 == pytest.approx(math.log(1000), abs=0.7)

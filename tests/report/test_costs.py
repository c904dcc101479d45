"""The section on costs says what the config and the curves say."""

import numpy as np
import pytest

from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.report import costs
from configs import default


def make_config(layout, **fields):
  config = default.get_config("imagenet")
  config.layout.name, config.batch_size = layout, 128
  config.update_from_flattened_dict(fields)
  return config


def test_section_of_one_device_without_reports():
  made = costs.make_section(make_config("one_device"), {})
  (drawing,) = made.parts
  assert drawing.kind == "svg" and len(made.text) == 1
  assert "sends nothing" in made.text[0]
  assert "sen" not in " ".join(drawing.table.header)
  assert {len(row) for row in drawing.table.rows} == {5}


def test_section_of_two_devices_on_a_machine():
  rates = np.array([np.nan, 100.0, 400.0, 1.0])
  made = costs.make_section(
    make_config("two_column"),
    {"images_per_second": rates},
    machine_lib.load("gtx1080ti"),
  )
  step, measured, predicted = made.text
  assert "each of the 2 devices computes" in step
  # 128 images at the middle of the three rates.
  assert "1,280 ms a step, 100 images/s" in measured
  assert "gtx1080ti" in predicted
  work, times = made.parts
  assert (work.name, times.name) == ("costs", "step_time")
  for part in made.parts:
    width = len(part.table.header)
    assert {len(row) for row in part.table.rows} == {width}
    assert part.alternative and part.caption
  layers = [row[0] for row in work.table.rows]
  assert layers[:2] == ["conv1", "conv2"]
  assert [row[0] for row in times.table.rows] == ["augmentation", *layers]


def test_several_networks_at_once_have_the_costs_of_one():
  one = costs.make_section(make_config("two_column"), {})
  both = costs.make_section(make_config("two_column", ensemble=2), {})
  assert one.text == both.text
  assert one.parts[0].table == both.parts[0].table


def test_machine_that_is_too_small_is_refused():
  config = make_config("two_column_data")
  with pytest.raises(ValueError, match="joins 2 devices at most, and 4 were"):
    costs.make_section(config, {}, machine_lib.load("two_core_cpu"))

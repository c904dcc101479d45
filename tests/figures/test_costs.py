"""Costs of layers are those of the published sizes, and drawn as they are."""

import pytest

from alexnet_jax.figures import costs
from alexnet_jax.partition import catalog
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from tests import build

BATCH = 128
# Side of the maps, window, channels that one reads, maps; units likewise.
# Krizhevsky et al. 2012, section 3.5.
PUBLISHED = {
  "conv1": (55, 11, 3, 96),
  "conv2": (27, 5, 48, 256),
  "conv3": (13, 3, 256, 384),
  "conv4": (13, 3, 192, 384),
  "conv5": (13, 3, 192, 256),
  "fc6": (1, 6, 256, 4096),
  "fc7": (1, 1, 4096, 4096),
  "fc8": (1, 1, 4096, 1000),
}


def make_workload(**options):
  return price.Workload(network=build.FULL_NETWORK, batch_size=BATCH, **options)


def test_costs_of_one_device_are_those_of_the_published_sizes():
  found = costs.find_costs(make_workload(), catalog.ONE_DEVICE)
  assert [cost.layer for cost in found] == [*PUBLISHED]
  for cost in found:
    side, window, channels, outputs = PUBLISHED[cost.layer]
    reads = window**2 * channels
    flops = 2 * BATCH * side**2 * reads * outputs
    assert cost.forward_flops == flops
    # The gradients of the kernel and of the input, which images do not have.
    assert cost.backward_flops == (1 if cost.layer == "conv1" else 2) * flops
    assert cost.parameter_bytes == 4 * (reads + 1) * outputs
    assert cost.activation_bytes == 4 * BATCH * side**2 * outputs
    assert cost.sent_bytes == 0
  assert sum(cost.parameter_bytes for cost in found) == 4 * 60_965_224


@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN, catalog.DATA_PARALLEL, catalog.FULLY_SHARDED],
  ids=lambda layout: layout.name,
)
def test_bytes_are_those_of_the_plan(layout):
  workload = make_workload(norms=True)
  found = costs.find_costs(workload, layout)
  plan = workload.make_plan(layout)
  for cost in found:
    sent = {"forward": 0, "backward": 0, "gradient": 0}
    for one in plan:
      if one.layer == cost.layer:
        kernel = one.tensor in ("kernel", "bias", "scale")
        sent["gradient" if kernel else one.direction] += one.sent_bytes
    assert cost.forward_bytes == sent["forward"]
    assert cost.backward_bytes == sent["backward"]
    assert cost.gradient_bytes == sent["gradient"]
  total = sum(cost.sent_bytes for cost in found)
  assert total == sum(one.sent_bytes for one in plan) > 0


def read_bars(panel, first):
  """{layer: width of its bars in all}; the first panel has the names."""
  names = [label.get_text() for label in first.get_yticklabels()]
  widths = dict.fromkeys(names, 0.0)
  for bars in panel.containers:
    for name, bar in zip(names, bars, strict=True):
      widths[name] += bar.get_width()
  return widths


def test_bars_have_the_lengths_of_the_costs():
  found = costs.find_costs(make_workload(), catalog.TWO_COLUMN_DATA)
  drawn = costs.to_figure(found)
  assert drawn.get_facecolor()[3] == 0
  fields = ("flops", "parameter_bytes", "activation_bytes", "sent_bytes")
  for panel, field, unit in zip(
    drawn.axes, fields, (1e9, 1e6, 1e6, 1e6), strict=True
  ):
    assert read_bars(panel, drawn.axes[0]) == pytest.approx(
      {cost.layer: getattr(cost, field) / unit for cost in found}
    )
  alone = costs.to_figure(costs.find_costs(make_workload(), catalog.ONE_DEVICE))
  titles = [panel.get_title(loc="left") for panel in alone.axes]
  assert not any(title.startswith("sends") for title in titles)


def test_bars_of_time_add_up_to_the_step():
  pricer = price.Pricer(machine_lib.load("dgx1_v100"), make_workload())
  prediction = price.predict(pricer, catalog.TWO_COLUMN_DATA)
  (panel,) = costs.to_time_figure(prediction).axes
  widths = read_bars(panel, panel)
  assert [*widths] == ["augmentation", *PUBLISHED, "loss"]
  assert sum(widths.values()) == pytest.approx(1e3 * prediction.seconds)

"""The section on the layout: what each device holds, and what it sends."""

from __future__ import annotations

import ml_collections

from alexnet_jax.figures import layout as layout_figure
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.report import section
from alexnet_jax.settings import build, settings

NAME, TITLE = "layout", "Layout"


def make_section(config: ml_collections.ConfigDict) -> section.Section:
  """Makes the section on the layout of the config of a run.

  Raises:
    ValueError: the config is wrong.
  """
  network, layout = settings.check(config)
  workload = build.make_workload(config, network)
  plan = workload.make_plan(layout)
  placed = plan_lib.choose_placements(
    network,
    layout,
    batch_size=workload.batch_size,
    exchange_dtype=workload.exchange_dtype,
  )
  several = layout.devices > 1
  rows = "a row of boxes"
  if several:
    rows = f"rows of boxes for {layout.devices:,} devices"
  return section.Section(
    name=NAME,
    title=TITLE,
    parts=[
      section.Drawing(
        name="layout",
        figure=layout_figure.to_figure(
          network, placed, plan, batch_size=workload.batch_size
        ),
        kind="svg",
        caption=(
          f"Layout {layout.name} ({layout_lib.format_mesh(layout.mesh)}): the "
          "outputs of each layer, with their sizes"
          + (
            "; a row for each device, or for devices that hold the same part, "
            "and what a step sends between them."
            if several
            else "."
          )
        ),
        alternative=(
          f"Layout {layout.name}: {rows}, a box for each layer from "
          f"{network.layers[0].name} to {network.layers[-1].name}. "
          f"{_describe_plan(plan)}"
        ),
      )
    ],
  )


def _describe_plan(plan: tuple[plan_lib.Collective, ...]) -> str:
  """Says which layers send, and along which axes."""
  axes: dict[str, list[str]] = {}
  for one in plan:
    axes.setdefault(one.layer, []).extend(one.axes)
  if not axes:
    return "Nothing is sent."
  listed = [
    f"{layer} along {' and '.join(dict.fromkeys(of_layer))}"
    for layer, of_layer in axes.items()
  ]
  return f"These send: {'; '.join(listed)}."

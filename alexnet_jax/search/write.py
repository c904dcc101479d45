"""Writes the config of a layout that a search has found, which `main` runs."""

from __future__ import annotations

import dataclasses
import pprint
import shlex

import ml_collections
from flax import traverse_util

from alexnet_jax.cli import config_file
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.search import report
from configs import default

_FILE = '''"""{title}

    python -m alexnet_jax.main --config={path}

Found by python -m alexnet_jax.search on {machine}: a step of {batch:,}
images is predicted to take {ms} ms if nothing overlaps.
"""

from alexnet_jax.partition import catalog
from configs import default

Placement = catalog.Placement
LAYOUT = catalog.Layout(
  name={name!r},
  mesh={mesh!r},
{placements})
# Where the config of the search differs from configs/default.py.
CHANGES = {changes}


def get_config():
  config = default.get_config()
  with config.unlocked():
    config.update(CHANGES)
  default.use_layout(config, LAYOUT)
  return config
'''


def write_config(
  path: str, config: ml_collections.ConfigDict, answer: report.Answer
) -> None:
  """Writes a config like the given one, with the fastest layout.

  Args:
    config: of the search.

  Raises:
    OSError: the file cannot be written.
    ValueError: the config has what a file cannot say.
  """
  best = answer.best.prediction
  network = best.workload.network
  layout = _place_by_kind(best.layout, network)
  expected = config.copy_and_resolve_references()
  expected.batch_size = best.workload.batch_size
  changes = _find_changes(expected.to_dict(), default.get_config().to_dict())
  text = _FILE.format(
    title=f"{network.name} on {layout.devices} devices.",
    path=shlex.quote(path),
    machine=answer.machine.name,
    batch=best.workload.batch_size,
    ms=f"{1e3 * best.seconds:,.3f}",
    name=layout.name,
    mesh=dict(layout.mesh),
    placements=_format_placements(layout),
    changes=pprint.pformat(changes, width=78),
  )
  with expected.unlocked():
    default.use_layout(expected, layout)
  if not config_file.write(path, text, expected):
    raise ValueError(
      "the config has what a file with a few changes of configs/default.py "
      "cannot say. Leave --write out, and set the layout of --format=json."
    )


def _find_changes(config: dict, base: dict) -> dict:
  """Returns what a config has other than the base, without its layout."""
  flat, known = (
    traverse_util.flatten_dict(one, keep_empty_nodes=True)
    for one in (config, base)
  )
  changed = {
    key: value
    for key, value in flat.items()
    if key[0] != "layout" and (key not in known or known[key] != value)
  }
  return traverse_util.unflatten_dict(changed)


def _place_by_kind(
  layout: layout_lib.Layout, network: wiring.Network
) -> layout_lib.Layout:
  """Returns the same layout, by kind where all layers of a kind are alike."""
  by_kind, single = {}, {}
  for kind in layout_lib.KINDS:
    layers = [layer for layer in network.layers if layer.kind == kind]
    placements = {layer.name: layout.placement(layer) for layer in layers}
    if len(set(placements.values())) == 1:
      by_kind[kind] = placements[layers[0].name]
    else:
      single |= placements
  return layout_lib.Layout(
    name=layout.name, mesh=layout.mesh, layers=single, **by_kind
  )


def _format_placements(layout: layout_lib.Layout) -> str:
  """Formats the arguments of a layout."""
  placements = {kind: getattr(layout, kind) for kind in layout_lib.KINDS}
  lines = [
    f"  {kind}={_format(placement)},"
    for kind, placement in placements.items()
    if placement != layout_lib.Placement()
  ]
  if layout.layers:
    lines.append("  layers={")
    for name, placement in layout.layers.items():
      lines.append(f"    {name!r}: {_format(placement)},")
    lines.append("  },")
  return "".join(f"{line}\n" for line in lines)


def _format(placement: layout_lib.Placement) -> str:
  fields = [
    f"{field.name}={value!r}"
    for field in dataclasses.fields(placement)
    if (value := getattr(placement, field.name)) != field.default
  ]
  return f"Placement({', '.join(fields)})"

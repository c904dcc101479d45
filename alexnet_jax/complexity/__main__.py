"""Counts parameters, multiplications and activations of networks, by layer.

    python -m alexnet_jax.complexity
    python -m alexnet_jax.complexity --wirings=alexnet2012,one_gpu,merged_tower
    python -m alexnet_jax.complexity \
      --config=configs/one_device.py:imagenet --config.network.columns=1

Each network in its published size: what its table says, what its program has,
and what XLA counts; then the networks beside each other. AlexNet and LeNet
together bring what introductions quote about them. Needs no data and no
accelerator. Ends with 1 where the counts disagree.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import rich.console
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.complexity import counts, tables
from alexnet_jax.network import catalog, wiring
from alexnet_jax.settings import settings

_CONFIG = command.define_config(required=False)
_WIRINGS = flags.DEFINE_list(
  "wirings",
  [catalog.ALEXNET_2012.name, catalog.LENET5.name],
  "Names of wirings, of network/catalog.py; the config's network comes first.",
)
_JSON = flags.DEFINE_string("json", None, "Write the counts to this file too.")

_NetworkCounts = Mapping[str, counts.NetworkCount]


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.in_one_line(ValueError, TypeError, OSError):
    command.choose_devices(1, simulated=1, topology_name=None)
    if _JSON.value is not None:
      command.check_path(_JSON.value, flag="json", endings=(".json",))
    networks = _make_networks()
    counted = {name: counts.count(made) for name, made in networks.items()}
    if _JSON.value is not None:
      with open(_JSON.value, "w") as file:
        json.dump(to_json(counted), file, indent=2)
  show(counted, command.make_console())
  agree = not any(count.disagreements for count in counted.values())
  sys.exit(0 if agree else 1)


def make_published(table: wiring.Wiring) -> wiring.Network:
  """A network in the size it was published in."""
  return wiring.make_network(
    table,
    image_size=table.published_size,
    num_classes=table.published_classes,
  )


def _make_networks() -> dict[str, wiring.Network]:
  """{what to call it: network}, first the config's, if one is given."""
  networks = {}
  if _CONFIG.value is not None:
    networks[command.config_name()] = settings.make_network(_CONFIG.value)
  for name in _WIRINGS.value:
    networks[name] = make_published(catalog.find(name, field="--wirings"))
  if not networks:
    raise ValueError(
      "--wirings is empty, expected names of wirings. "
      "Set --wirings=alexnet2012,lenet5."
    )
  return networks


def to_json(counted: _NetworkCounts) -> dict:
  """What the tables show, as data; of one image's forward pass."""
  return {
    name: {
      "wiring": count.network.name,
      "image_size": count.network.image_size,
      "columns": count.network.columns,
      "layers": [
        {
          "layer": layer.layer,
          "kernel": layer.kernel,
          "parameters": layer.parameters,
          "multiplications": layer.multiplications,
          "multiplications_of_padding": layer.padding,
          "outputs": layer.outputs,
          "program_parameters": layer.program_parameters,
          "program_multiplications": layer.program_multiplications,
          "xla_flops": layer.xla_flops,
        }
        for layer in count.layers
      ],
      "parameters": count.total("parameters"),
      "multiplications": count.total("multiplications"),
      "outputs": count.total("outputs"),
      "forward_xla_flops": count.forward_flops,
      "disagreements": count.disagreements,
    }
    for name, count in counted.items()
  }


def show(counted: _NetworkCounts, console: rich.console.Console) -> None:
  """Prints all tables and what is to be said of them."""
  for name, count in counted.items():
    command.print_whole(console, tables.by_table(name, count))
    _print_lines(console, tables.remarks(count))
    command.print_whole(console, tables.in_program(name, count))
    _print_lines(console, tables.verdict(count))
  if len(counted) > 1:
    command.print_whole(console, tables.beside(counted))
  names = (catalog.ALEXNET_2012.name, catalog.LENET5.name)
  if all(name in counted for name in names):
    console.print()
    networks = [counted[name].network for name in names]
    slides = make_published(catalog.ALEXNET_D2L)
    _print_lines(console, tables.explain(*networks, slides))


def _print_lines(console: rich.console.Console, lines: Sequence[str]) -> None:
  for line in lines:
    console.print(line, highlight=False, markup=False)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

"""Counts parameters, multiplications and activations of networks, by layer.

    python -m alexnet_jax.complexity
    python -m alexnet_jax.complexity --wirings=alexnet2012,one_gpu,merged_tower
    python -m alexnet_jax.complexity \\
      --config=configs/one_device.py:imagenet --config.network.columns=1

Counts each network in its published size three times: by its table, in its
program, and by XLA. Then compares the networks with each other; AlexNet and
LeNet together are also compared with what introductions quote about them. Needs
no data and no accelerator. Exits with 1 if the counts disagree.
"""

from __future__ import annotations

import sys

from absl import app
from flax import traverse_util

from alexnet_jax.cli import command
from alexnet_jax.complexity import counts, tables
from alexnet_jax.network import catalog, wiring
from alexnet_jax.settings import fields, settings

_CONFIG = command.define_config(required=False)
_WIRINGS = command.define_list(
  "wirings",
  [catalog.ALEXNET_2012.name, catalog.LENET5.name],
  "Names of wirings in network/catalog.py; the config's network comes first.",
)
_JSON = command.define_path("json", "Also writes the counts to this file.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError):
    command.choose_devices(1, simulated=1, topology_name=None)
    if _JSON.value is not None:
      command.check_path(_JSON.value, flag="json", endings=(".json",))
    counted = {
      name: counts.count(network) for name, network in _make_networks().items()
    }
    if _JSON.value is not None:
      data = {name: count.to_json() for name, count in counted.items()}
      with open(_JSON.value, "w") as file:
        file.write(command.to_json(data))
  tables.show(counted, command.make_console())
  sys.exit(1 if any(count.disagreements for count in counted.values()) else 0)


def _make_networks() -> dict[str, wiring.Network]:
  """{name in the tables: network}, first the config's, if one is given."""
  networks = {}
  if _CONFIG.value is not None:
    fields.check(traverse_util.flatten_dict(_CONFIG.value.to_dict(), sep="."))
    networks[command.config_name()] = settings.make_network(_CONFIG.value)
  for name in _WIRINGS.value:
    networks[name] = counts.make_published(
      catalog.find(name, field="--wirings")
    )
  if not networks:
    raise ValueError(
      "--wirings is empty, expected names of wirings. "
      "Set --wirings=alexnet2012,lenet5."
    )
  return networks


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)

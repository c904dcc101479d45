"""The tables of `complexity`, and what is to be said of each."""

from __future__ import annotations

from collections.abc import Mapping

import rich.table

from alexnet_jax.complexity import counts
from alexnet_jax.partition import catalog as layouts
from alexnet_jax.partition import per_device
from alexnet_jax.program import summary

# Of the training split of ILSVRC 2012, and the passes over it (Krizhevsky et
# al. 2012, section 5). Backward is two products for each of forward's: one for
# the kernel, one for the input.
TRAINING_IMAGES = 1_281_167
TRAINING_EPOCHS = 90
FORWARDS_PER_STEP = 3


def by_table(name: str, count: counts.NetworkCount) -> rich.table.Table:
  """A row per layer: its kernel, and what follows from it."""
  network = count.network
  channels = network.image_channels
  columns = f"{network.columns} column{'s' if network.columns > 1 else ''}"
  table = summary.make_table(
    f"{name}: image {network.image_size}x{network.image_size}x{channels}, "
    f"{network.layers[-1].features:,} classes, {columns}",
    *("layer", "kernel", "> parameters", "> %", "> MAC", "> %", "> outputs"),
  )
  parameters = count.total("parameters")
  multiplications = count.total("multiplications")
  for layer in count.layers:
    table.add_row(
      layer.layer,
      "x".join(map(str, layer.kernel)),
      f"{layer.parameters:,}",
      f"{layer.parameters / parameters:.1%}".rstrip("%"),
      f"{layer.multiplications:,}",
      f"{layer.multiplications / multiplications:.1%}".rstrip("%"),
      f"{layer.outputs:,}",
    )
  table.add_section()
  table.add_row(
    *("sum", "", f"{parameters:,}", "", f"{multiplications:,}", ""),
    f"{count.total('outputs'):,}",
  )
  return table


def remarks(count: counts.NetworkCount) -> list[str]:
  """What the sums of a network mean."""
  network = count.network
  multiplications = count.total("multiplications")
  of_parameters, of_multiplications = (
    count.total(field, convolutions=True) / count.total(field)
    for field in ("parameters", "multiplications")
  )
  lines = [
    f"one image, forward: {_millions(multiplications)} M MAC, which are "
    f"{2 * multiplications / 1e9:,.4g} GFLOP; the convolutions have "
    f"{of_parameters:.1%} of the parameters and {of_multiplications:.1%} of "
    "the MAC",
  ]
  if network.layers[-1].features == 1000:
    flops = 2 * multiplications * FORWARDS_PER_STEP
    flops *= TRAINING_EPOCHS * TRAINING_IMAGES
    lines.append(
      f"a training run of {TRAINING_EPOCHS} x {TRAINING_IMAGES:,} images, each "
      f"{FORWARDS_PER_STEP} times a forward pass: "
      + f"{flops:.1e} FLOP".replace("e+", "e")
    )
  if network.columns > 1:
    shares = [
      f"{held:,} parameters and {_millions(done)} M MAC"
      for held, done in count.column_shares
    ]
    lines.append(
      "a GPU for each column, all of fc8 on the first, as in 2012: "
      f"{shares[0]}; {shares[1]}"
      + (" on each of the others" if shares[2:] else "")
    )
  if network.columns == layouts.TWO_COLUMN.devices:
    shares = per_device.find_shares(network, layouts.TWO_COLUMN, batch_size=1)
    held = sum(share.parameter_bytes for share in shares.values())
    lines.append(
      f"layout {layouts.TWO_COLUMN.name}, fc8 split by what it reads: "
      f"{held // per_device.FLOAT32:,} parameters and "
      f"{_millions(multiplications / layouts.TWO_COLUMN.devices)} M MAC on each"
    )
  return lines


def in_program(name: str, count: counts.NetworkCount) -> rich.table.Table:
  """A row per layer: arrays, traced products, and XLA's count of these."""
  table = summary.make_table(
    f"{name} in its program: arrays, traced products, XLA's cost analysis",
    *("layer", "> parameters", "> MAC", "> MAC of padding", "> XLA's FLOP"),
    "as by the table",
  )
  for layer in count.layers:
    table.add_row(
      layer.layer,
      f"{layer.program_parameters:,}",
      f"{layer.program_multiplications:,}",
      f"{layer.padding:,}",
      f"{layer.xla_flops:,}",
      "NO" if layer.disagreements else "yes",
    )
  table.add_section()
  sums = ("program_parameters", "program_multiplications", "padding")
  table.add_row(
    "sum",
    *(f"{count.total(field):,}" for field in (*sums, "xla_flops")),
    "NO" if count.disagreements else "yes",
  )
  return table


def verdict(count: counts.NetworkCount) -> list[str]:
  if count.disagreements:
    return ["the counts DISAGREE:", *(f"  {x}" for x in count.disagreements)]
  flops = count.total("xla_flops")
  return [
    "the program has the parameters and the MAC of the table; XLA counts 2 "
    "FLOP for each MAC but those with a zero of the padding",
    f"XLA counts {count.forward_flops:,} FLOP in the whole forward pass, "
    f"{count.forward_flops - flops:,} of them for biases, activations, "
    "normalisation and pooling",
  ]


def beside(counted: Mapping[str, counts.NetworkCount]) -> rich.table.Table:
  """Layer by layer, and how often each has what the last network has."""
  *others, last = counted
  headers = [header for name in others for header in (f"> {name}", "> x")]
  table = summary.make_table(
    f"beside each other; x: times {last}",
    *("layer", *headers, f"> {last}"),
  )
  layers = {layer.layer for count in counted.values() for layer in count.layers}
  for field, title in (
    ("parameters", "parameters"),
    ("multiplications", "MAC"),
    ("outputs", "outputs"),
  ):
    table.add_row(title)
    numbers = {
      name: {layer.layer: getattr(layer, field) for layer in count.layers}
      | {"sum": count.total(field)}
      for name, count in counted.items()
    }
    for layer in (*sorted(layers), "sum"):
      cells = []
      for name in others:
        cells += _cells(numbers[name].get(layer), numbers[last].get(layer))
      table.add_row(f"  {layer}", *cells, *_cells(numbers[last].get(layer))[:1])
  return table


def _cells(number: int | None, other: int | None = None) -> list[str]:
  """A number and how often it has another; - where there is none."""
  if number is None:
    return ["-", "-"]
  if other is None:
    return [f"{number:,}", "-"]
  ratio = number / other
  return [f"{number:,}", f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"]


def _millions(number: float) -> str:
  return f"{number / 1e6:,.{1 if number >= 1e6 else 4}f}"

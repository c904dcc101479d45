"""The tables of `complexity`, and lines that explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rich.console
import rich.table

from alexnet_jax.cli import command
from alexnet_jax.complexity import counts
from alexnet_jax.network import catalog, wiring
from alexnet_jax.partition import catalog as layouts
from alexnet_jax.partition import per_device
from alexnet_jax.program import summary

# The training split of ILSVRC 2012, and the epochs (Krizhevsky et al. 2012,
# section 5). The backward pass has two products for each one of the forward
# pass: one for the kernel, one for the input.
TRAINING_IMAGES = 1_281_167
TRAINING_EPOCHS = 90
FORWARDS_PER_STEP = 3

# How introductions compare AlexNet with LeNet. Lecture slides that follow "Dive
# into Deep Learning" (d2l.ai) have 46 M parameters and 1 GFLOP for AlexNet, .6
# M and 4 M for LeNet, and call this 250 times the computation and 10 times the
# parameters. The figures travel without their convention; `explain` applies it
# to both networks.
QUOTED_COMPUTATION = 250
QUOTED_PARAMETERS = 10
# (parameters, what is called FLOP) of the slides.
QUOTED_ALEXNET = (46e6, 1e9)
QUOTED_LENET = (0.6e6, 4e6)


def show(
  counted: Mapping[str, counts.NetworkCount], console: rich.console.Console
) -> None:
  """Prints all tables, each with the lines that explain it."""
  for name, count in counted.items():
    command.print_table(console, by_table(name, count))
    _print_lines(console, remarks(count))
    command.print_table(console, in_program(name, count))
    _print_lines(console, verdict(count))
  if len(counted) > 1:
    command.print_table(console, compare(counted))
  names = (catalog.ALEXNET_2012.name, catalog.LENET5.name)
  if all(name in counted for name in names):
    console.print()
    alexnet, lenet = (counted[name] for name in names)
    slides = counts.make_published(catalog.ALEXNET_D2L)
    _print_lines(console, explain(alexnet, lenet, slides))


def _print_lines(console: rich.console.Console, lines: Sequence[str]) -> None:
  for line in lines:
    console.print(line, highlight=False)


def by_table(name: str, count: counts.NetworkCount) -> rich.table.Table:
  """Makes a table of the counts that follow from the layers' sizes."""
  network, side = count.network, count.network.image_size
  columns = f"{network.columns} column{'s' if network.columns > 1 else ''}"
  table = summary.make_table(
    f"{name}: image {side}x{side}x{network.image_channels}, "
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
  """Explains the sums of `by_table`: work per image, per run, per device."""
  network = count.network
  multiplications = count.total("multiplications")
  in_convolutions = [
    count.total(field, convolutions=True) / count.total(field)
    for field in ("parameters", "multiplications")
  ]
  last = network.layers[-1].name
  lines = [
    f"forward pass of one image: {_millions(multiplications)} M MAC or "
    f"{2 * multiplications / 1e9:,.4g} GFLOP; the convolutions have "
    f"{in_convolutions[0]:.1%} of the parameters and {in_convolutions[1]:.1%} "
    "of the MAC",
  ]
  if network.layers[-1].features == 1000:
    flops = 2 * multiplications * FORWARDS_PER_STEP
    flops *= TRAINING_EPOCHS * TRAINING_IMAGES
    lines.append(
      f"training on {TRAINING_EPOCHS} x {TRAINING_IMAGES:,} images, "
      f"{FORWARDS_PER_STEP} times a forward pass each: "
      + f"{flops:.1e} FLOP".replace("e+", "e")
    )
  if network.columns > 1:
    devices = [
      f"{parameters:,} parameters and {_millions(mac)} M MAC"
      for parameters, mac in count.columns_of_2012
    ]
    lines.append(
      f"one GPU per column, {last} entirely on the first, as in 2012: "
      f"{devices[0]}; {devices[1]}"
      + (" on each of the others" if devices[2:] else "")
    )
  if network.columns == layouts.TWO_COLUMN.devices:
    loads = per_device.find_loads(network, layouts.TWO_COLUMN, batch_size=1)
    parameter_bytes = sum(load.parameter_bytes for load in loads.values())
    lines.append(
      f"layout {layouts.TWO_COLUMN.name}, which splits {last}, too: "
      f"{parameter_bytes // per_device.FLOAT32:,} parameters and "
      f"{_millions(multiplications / layouts.TWO_COLUMN.devices)} M MAC per "
      "device"
    )
  return lines


def _millions(number: float) -> str:
  return f"{number / 1e6:,.{1 if number >= 1e6 else 4}f}"


def in_program(name: str, count: counts.NetworkCount) -> rich.table.Table:
  """Makes a table of the arrays, the traced products, and XLA's count."""
  table = summary.make_table(
    f"{name} in its program: arrays, traced products, XLA's cost analysis",
    *("layer", "> parameters", "> MAC", "> MAC of padding", "> XLA's FLOP"),
    "agrees with the table",
  )
  fields = (
    *("program_parameters", "program_multiplications"),
    *("multiplications_of_padding", "xla_flops"),
  )
  for layer in count.layers:
    table.add_row(
      layer.layer,
      *(f"{getattr(layer, field):,}" for field in fields),
      "NO" if layer.disagreements else "yes",
    )
  table.add_section()
  table.add_row(
    "sum",
    *(f"{count.total(field):,}" for field in fields),
    "NO" if count.disagreements else "yes",
  )
  return table


def verdict(count: counts.NetworkCount) -> list[str]:
  """Lists the disagreements, or explains the difference to XLA's count."""
  if count.disagreements:
    return ["the counts DISAGREE:", *(f"  {x}" for x in count.disagreements)]
  others = count.forward_flops - count.total("xla_flops")
  return [
    "the program has the parameters and the MAC of the table; XLA counts 2 "
    "FLOP for each MAC, except for those with a zero of the padding",
    f"XLA counts {count.forward_flops:,} FLOP in the complete forward pass, "
    f"{others:,} of them for biases, activations, normalization and pooling",
  ]


def compare(counted: Mapping[str, counts.NetworkCount]) -> rich.table.Table:
  """Makes a table of all networks, with ratios to the last one."""
  *others, last = counted
  headers = [header for name in others for header in (f"> {name}", "> x")]
  table = summary.make_table(
    f"compared with each other; x: times {last}",
    *("layer", *headers, f"> {last}"),
  )
  # In the order in which they come, without those that have been named.
  layers = dict.fromkeys(
    layer.layer for count in counted.values() for layer in count.layers
  )
  for field in counts.SUMMED:
    table.add_row("MAC" if field == "multiplications" else field)
    numbers = {
      name: {layer.layer: getattr(layer, field) for layer in count.layers}
      | {None: count.total(field)}
      for name, count in counted.items()
    }
    for layer in (*layers, None):
      cells = []
      for name in others:
        cells += _cells(numbers[name].get(layer), numbers[last].get(layer))
      cells += _cells(numbers[last].get(layer))[:1]
      table.add_row(f"  {layer or 'sum'}", *cells)
  return table


def _cells(number: int | None, other: int | None = None) -> list[str]:
  """A number and its ratio to another, each - if there is none."""
  if number is None:
    return ["-", "-"]
  if other is None:
    return [f"{number:,}", "-"]
  ratio = number / other
  return [f"{number:,}", f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"]


def explain(
  alexnet: counts.NetworkCount,
  lenet: counts.NetworkCount,
  slides: wiring.Network,
) -> list[str]:
  """Explains how the quoted figures come about; `slides` is their AlexNet."""
  (parameters, multiplications), (few_parameters, few_multiplications) = (
    (count.total("parameters"), count.total("multiplications"))
    for count in (alexnet, lenet)
  )
  large, small = count_as_slides(slides), count_as_slides(lenet.network)
  quoted = [a / b for a, b in zip(QUOTED_ALEXNET, QUOTED_LENET, strict=True)]
  excess = [a / b for a, b in zip(QUOTED_LENET, small, strict=True)]
  return [
    f"Introductions quote AlexNet as {QUOTED_COMPUTATION} times the "
    f"computation and {QUOTED_PARAMETERS} times the parameters of LeNet. It "
    f"has {multiplications / few_multiplications:,.0f} times the "
    f"multiply-accumulates ({multiplications:,} / {few_multiplications:,}) and "
    f"{parameters / few_parameters:,.0f} times the parameters "
    f"({parameters:,} / {few_parameters:,}).",
    "The quoted figures are from lecture slides: AlexNet "
    f"{_quoted(QUOTED_ALEXNET)}, LeNet {_quoted(QUOTED_LENET)}.",
    f"1. Their AlexNet is d2l's ({slides.name}), which has no columns, counted "
    f"without biases and without fc8: {large[0]:,} weights and "
    f"{large[1]:,} multiply-accumulates, called FLOP although each is two.",
    f"2. Counted in the same way LeNet has {small[0]:,} weights and "
    f"{small[1]:,} multiply-accumulates. The slides have both ten times too "
    f"large ({excess[0]:.1f} and {excess[1]:.1f} times).",
    f"3. So {_short(QUOTED_ALEXNET[1])} / {_short(QUOTED_LENET[1])} gives the "
    f"{quoted[1]:.0f}. {_short(QUOTED_ALEXNET[0])} / "
    f"{_short(QUOTED_LENET[0])} gives {quoted[0]:.0f}; nothing counted here "
    f"gives the {QUOTED_PARAMETERS}.",
    f"4. By the slides' own convention it is {large[0] / small[0]:,.0f} times "
    f"the weights and {large[1] / small[1]:,.0f} times the "
    "multiply-accumulates.",
  ]


def count_as_slides(network: wiring.Network) -> tuple[int, int]:
  """(weights, MAC) without biases and without the last layer."""
  sizes = list(network.sizes().values())[:-1]
  return (
    sum(size.parameters - size.kernel[-1] - size.scales for size in sizes),
    sum(size.multiplications for size in sizes),
  )


def _quoted(figures: tuple[float, float]) -> str:
  return f"{_short(figures[0])} parameters and {_short(figures[1])} FLOP"


def _short(figure: float) -> str:
  return f"{figure / 1e9:g} G" if figure >= 1e9 else f"{figure / 1e6:g} M"

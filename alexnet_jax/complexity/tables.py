"""The tables of `complexity`, and what is to be said of each."""

from __future__ import annotations

from collections.abc import Mapping

import rich.table

from alexnet_jax.complexity import counts
from alexnet_jax.network import wiring
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
    "normalization and pooling",
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


# How AlexNet compares with LeNet, and what introductions quote instead.
#
# Lecture slides that follow "Dive into Deep Learning" (d2l.ai) have 46 M
# parameters and 1 GFLOP for AlexNet, .6 M and 4 M for LeNet, and call this 250
# times the computation and 10 times the parameters. The figures travel without
# their convention. Here it is applied to both networks.

QUOTED_COMPUTATION = 250
QUOTED_PARAMETERS = 10
# (parameters, what is called FLOP) of the slides.
QUOTED_ALEXNET = (46e6, 1e9)
QUOTED_LENET = (0.6e6, 4e6)


def count_as_slides(network: wiring.Network) -> tuple[int, int]:
  """(weights, MAC) without biases and without the last layer."""
  sizes = list(network.sizes().values())[:-1]
  return (
    sum(size.parameters - size.kernel[-1] - size.scales for size in sizes),
    sum(size.multiplications for size in sizes),
  )


def count_all(network: wiring.Network) -> tuple[int, int]:
  """(parameters, MAC) of all layers."""
  sizes = network.sizes().values()
  return (
    sum(size.parameters for size in sizes),
    sum(size.multiplications for size in sizes),
  )


def explain(
  alexnet: wiring.Network, lenet: wiring.Network, slides: wiring.Network
) -> list[str]:
  """What is quoted, what it is, and how the quoted figures come about.

  Args:
    alexnet: the network of 2012.
    lenet: LeNet-5.
    slides: the AlexNet that the slides count.

  Returns:
    A line for each step of the argument.
  """
  parameters, multiplications = count_all(alexnet)
  few_parameters, few_multiplications = count_all(lenet)
  large, small = count_as_slides(slides), count_as_slides(lenet)
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


def _quoted(figures: tuple[float, float]) -> str:
  return f"{_short(figures[0])} parameters and {_short(figures[1])} FLOP"


def _short(figure: float) -> str:
  return f"{figure / 1e9:g} G" if figure >= 1e9 else f"{figure / 1e6:g} M"

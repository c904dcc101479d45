"""How AlexNet compares with LeNet, and what introductions quote instead.

Lecture slides that follow "Dive into Deep Learning" (d2l.ai) have 46 M
parameters and 1 GFLOP for AlexNet, .6 M and 4 M for LeNet, and call this 250
times the computation and 10 times the parameters. The figures travel without
their convention. Here it is applied to both networks.
"""

from __future__ import annotations

from alexnet_jax.network import wiring

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

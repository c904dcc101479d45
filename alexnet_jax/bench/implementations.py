"""The time of each operation in each of its implementations.

Measures what --implementations can choose, at the sizes of the network, forward
and backward. Each operation runs alone, since within a layer the convolution
would hide it. A network has one implementation of an operation in all layers,
so the sum over the layers counts.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping

import jax
import rich.table
from flax import traverse_util

from alexnet_jax.bench import pieces as pieces_lib
from alexnet_jax.bench import report, turns
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import ops, pooling
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import summary

# An implementation that saves this part of the time is worth a line.
WORTH = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplementationTimes(report.ProgramResult):
  """Seconds of operations, round by round.

  Attributes:
    seconds: {operation: {layer: {implementation: seconds}}}, forward and
      backward, for the operations of the network.
    used: the implementations of the program.
    rule: those that --implementations=auto would choose.
  """

  seconds: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
  used: implementations_lib.Implementations
  rule: implementations_lib.Implementations

  @property
  def total_seconds(self) -> dict[str, dict[str, float]]:
    """{operation: {implementation: sum of its medians in all layers}}."""
    return {
      operation: {
        name: sum(statistics.median(times[name]) for times in layers.values())
        for name in implementations_lib.CHOICES[operation]
      }
      for operation, layers in self.seconds.items()
    }

  @property
  def faster(self) -> dict[str, str]:
    """{operation: its fastest implementation}, if it saves `WORTH`."""
    fastest = {}
    for operation, totals in self.total_seconds.items():
      name = min(totals, key=totals.get)
      if totals[name] < (1 - WORTH) * totals[getattr(self.used, operation)]:
        fastest[operation] = name
    return fastest

  def tables(self) -> list[rich.table.Table]:
    table = summary.make_table(
      f"operations of a step of {self.batch_size} images on one device, "
      "forward and backward, in ms",
      *("operation", "layer", "implementation"),
      *("> median", "> lowest", "> highest", "> of the plain one", ""),
    )
    for operation, layers in self.seconds.items():
      plain = implementations_lib.CHOICES[operation][0]
      for layer, times in layers.items():
        for name, seconds in times.items():
          ratio = statistics.median(seconds) / statistics.median(times[plain])
          table.add_row(
            *(operation, layer, name, *report.spread_ms(seconds)),
            f"{ratio:.2f}",
          )
      totals = self.total_seconds[operation]
      for name, total in totals.items():
        marks = {
          "the rule's": getattr(self.rule, operation),
          "used": getattr(self.used, operation),
          "faster": self.faster.get(operation),
        }
        table.add_row(
          *(operation, "all", name, report.to_ms(total), "", ""),
          f"{total / totals[plain]:.2f}",
          ", ".join(mark for mark, marked in marks.items() if marked == name),
        )
      table.add_section()
    return [table]

  def lines(self) -> list[str]:
    lines = [
      f"{self.on_devices()}; the rule's implementations are those "
      "of --implementations=auto"
    ]
    worth = f"faster than those used by more than {WORTH:.0%}"
    if not self.faster:
      return [*lines, f"no implementation is {worth}"]
    named = ",".join(f"{key}={name}" for key, name in self.faster.items())
    return [
      *lines,
      f"{worth}: --implementations={named}; measured alone, compare whole "
      "steps with --what=step",
    ]


def measure(
  program: program_lib.Program, options: report.Options, *, rounds: int
) -> ImplementationTimes:
  """Measures every operation of the network in every implementation."""
  compiler = pieces_lib.Compiler(program.mesh, options)
  calls = {
    case: compiler.make_call(function, *blocks)
    for case, (function, blocks) in make_cases(program).items()
  }
  platform = program.mesh.devices.flat[0].platform
  measured = turns.take_turns(calls, rounds=rounds, in_order=platform != "cpu")
  return ImplementationTimes(
    **report.describe(program, options),
    seconds=traverse_util.unflatten_dict(measured),
    used=program.implementations,
    rule=implementations_lib.choose(
      platform, program.network, compute_dtype=program.compute_dtype
    ),
  )


def make_cases(
  program: program_lib.Program,
) -> dict[tuple[str, str, str], tuple[Callable, tuple]]:
  """Returns {(operation, layer, implementation): (function, its blocks)}."""
  return {
    (operation, piece.layer.name, name): _make_function(
      operation,
      dataclasses.replace(
        piece,
        implementations=dataclasses.replace(
          piece.implementations, **{operation: name}
        ),
      ),
    )
    for operation, names in implementations_lib.CHOICES.items()
    for piece in pieces_lib.cut_layers(program)
    if _has(operation, piece)
    for name in names
  }


def _has(operation: str, piece: pieces_lib.Piece) -> bool:
  """Whether a layer has an operation with several implementations."""
  layer, chosen = piece.layer, implementations_lib.Implementations
  return {
    "pool": layer.pool is not None and layer.pool.kind == "max",
    "bias": layer.normalize != "batch",
    "conv3x3": chosen(conv3x3="winograd").uses_winograd(
      layer, piece.x.dtype.name
    ),
  }[operation]


def _make_function(
  operation: str, piece: pieces_lib.Piece
) -> tuple[Callable, tuple[pieces_lib.Block, ...]]:
  """An operation of a layer, forward and backward, and its blocks."""
  layer, implementations = piece.layer, piece.implementations
  outputs = piece.parameters["bias"].shape[0]
  product = piece.product
  before = pieces_lib.Block((*product.shape[:-1], outputs), product.dtype)
  match operation:
    case "pool":
      return _add_backward(
        lambda x: pooling.pool(
          x, layer.pool, implementation=implementations.pool
        ),
        (before,),
      )
    case "bias":  # the gradient of its input is that of its output
      return _add_backward(
        lambda bias, x: ops.add_bias(
          x, bias, implementation=implementations.bias
        ),
        (piece.parameters["bias"], before),
      )
    case "conv3x3":
      return _add_backward(
        lambda kernel, x: piece.multiply(x, kernel),
        (piece.parameters["kernel"], piece.x),
        num_gradients=1 if layer.reads == "image" else 2,
      )


def _add_backward(
  function: Callable,
  blocks: tuple[pieces_lib.Block, ...],
  *,
  num_gradients: int = 1,
) -> tuple[Callable, tuple[pieces_lib.Block, ...]]:
  """Adds the backward pass to a function, and its gradient to the blocks.

  The first `num_gradients` blocks have gradients.
  """

  def run(gradient, *arrays):
    first, rest = arrays[:num_gradients], arrays[num_gradients:]
    y, pull = jax.vjp(lambda *first: function(*first, *rest), *first)
    return y, pull(gradient)

  return run, (jax.eval_shape(function, *blocks), *blocks)

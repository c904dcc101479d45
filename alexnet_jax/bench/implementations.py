"""How long each operation takes in each of its forms, at this network's sizes.

What `--implementations` can be told is measured here, forward with backward: an operation
alone, since within a layer its convolution would hide it. The form of a network
is one for all layers, so it is the sum over these that counts.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import rich.table

from alexnet_jax.bench import pieces as pieces_lib
from alexnet_jax.bench import turns
from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import ops, winograd
from alexnet_jax.program import program as program_lib

# A form that takes this much less time than the rule's is worth a line.
WORTH = 0.1

# operation -> layer -> form
Seconds = Mapping[str, Mapping[str, Mapping[str, list[float]]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """Seconds of operations, round by round.

  Attributes:
    seconds: {operation: {layer: {form: seconds}}}, forward and backward; an
      operation that the network does not have is left out.
    batch_size: images in a step, over all devices.
    devices: that compute at once.
    platform: gpu, tpu or cpu.
    taken: the forms of the program.
    rule: those that it would have by itself.
  """

  seconds: Seconds
  batch_size: int
  devices: int
  platform: str
  taken: implementations_lib.Implementations
  rule: implementations_lib.Implementations

  def total(self, operation: str, form: str) -> float:
    """Seconds of an operation in all layers: sum of the medians."""
    return sum(
      statistics.median(of_layer[form])
      for of_layer in self.seconds[operation].values()
    )

  def fastest(self, operation: str) -> str:
    """The form that takes least time in all layers."""
    return min(
      implementations_lib.CHOICES[operation],
      key=lambda form: self.total(operation, form),
    )

  def better(self) -> dict[str, str]:
    """Forms that are faster than the taken ones by `WORTH`, by operation."""
    found = {}
    for operation in self.seconds:
      form = self.fastest(operation)
      taken = self.total(operation, getattr(self.taken, operation))
      if self.total(operation, form) < (1 - WORTH) * taken:
        found[operation] = form
    return found


def measure(
  program: program_lib.Program, options: Mapping, *, rounds: int
) -> Speed:
  """Measures every operation that the network has.

  Args:
    program: of the step.
    options: for the compiler, as the step has them.
    rounds: how often each is measured.
  """
  maker = pieces_lib.Maker(program, options)
  calls = {
    name: maker.call(function, *blocks)
    for name, (function, blocks) in find_cases(program).items()
  }
  platform = program.mesh.devices.flat[0].platform
  found = turns.take_turns(calls, rounds=rounds, in_order=platform != "cpu")
  seconds = {}
  for (operation, layer, form), of_form in found.items():
    of_layer = seconds.setdefault(operation, {}).setdefault(layer, {})
    of_layer[form] = of_form
  return Speed(
    seconds=seconds,
    batch_size=program.batch_size,
    devices=program.mesh.size,
    platform=platform,
    taken=program.implementations,
    rule=implementations_lib.choose(
      platform, program.network, precision=program.compute_dtype
    ),
  )


def find_cases(
  program: program_lib.Program,
) -> dict[tuple[str, str, str], tuple[Callable, tuple]]:
  """What is to be measured: (operation, layer, form) -> (function, blocks)."""
  return {
    (operation, piece.layer.name, form): _make(
      operation, _in_form(piece, operation, form)
    )
    for operation, known in implementations_lib.CHOICES.items()
    for piece in pieces_lib.cut(program)
    if _has(operation, piece)
    for form in known
  }


def _in_form(
  piece: pieces_lib.Piece, operation: str, form: str
) -> pieces_lib.Piece:
  implementations = dataclasses.replace(
    piece.implementations, **{operation: form}
  )
  return dataclasses.replace(piece, implementations=implementations)


def _has(operation: str, piece: pieces_lib.Piece) -> bool:
  """Whether a layer has an operation that comes in several forms."""
  layer = piece.layer
  return {
    "pool": layer.pool is not None and layer.pool.kind == "max",
    "norm": layer.normalize in ("column", "across"),
    "bias": layer.normalize != "batch",
    "conv1": layer.window > 0 and layer.stride > 1,
    "conv3x3": layer.window == winograd.WINDOW
    and layer.stride == 1
    and piece.x.dtype == jnp.float32,
    "columns": layer.window > 0 and piece.columns > 1,
  }[operation]


def _make(
  operation: str, piece: pieces_lib.Piece
) -> tuple[Callable, tuple[pieces_lib.Block, ...]]:
  """An operation of a layer forward and backward, and the blocks it takes."""
  layer, implementations = piece.layer, piece.implementations
  outputs = piece.parameters["bias"].shape[0]
  before = pieces_lib.Block((*piece.product.shape[:-1], outputs), piece.x.dtype)
  match operation:
    case "pool":
      return _both(
        lambda x: ops.pool(x, layer.pool, form=implementations.pool), (before,)
      )
    case "norm":
      return _both(
        lambda x: ops.by_neighbors(
          piece.network,
          layer,
          x,
          exchange_lib.NoExchange(),
          form=implementations.norm,
        ),
        (before,),
      )
    case "bias":  # the gradient of its input is the one that comes
      return _both(
        lambda bias, x: ops.shift(x, bias, form=implementations.bias),
        (piece.parameters["bias"], before),
        by=1,
      )
    case "conv1" | "conv3x3" | "columns":
      by = 1 if layer.reads == "image" else 2
      return _both(
        lambda kernel, x: piece.multiply(x, kernel),
        (piece.parameters["kernel"], piece.x),
        by=by,
      )


def _both(
  function: Callable, blocks: tuple[pieces_lib.Block, ...], *, by: int = 1
) -> tuple[Callable, tuple[pieces_lib.Block, ...]]:
  """A function forward and backward, and its blocks with that of its gradient.

  Args:
    function: of the blocks.
    blocks: of one device.
    by: how many of them, the first, have gradients.
  """

  def run(gradient, *arrays):
    rest = arrays[by:]
    y, pull = jax.vjp(lambda *first: function(*first, *rest), *arrays[:by])
    return y, pull(gradient)

  return run, (jax.eval_shape(function, *blocks), *blocks)


def show(found: Speed) -> turns.Shown:
  """What is measured, as data, as tables, and what these mean."""
  tables = [_table(found)]
  return turns.Shown(_to_data(found), tables, _to_lines(found))


def _to_data(found: Speed) -> dict:
  """What the table shows, as data, and the seconds of every round."""
  return {
    "platform": found.platform,
    "devices": found.devices,
    "batch_size": found.batch_size,
    "taken": str(found.taken),
    "rule": str(found.rule),
    "better": found.better(),
    "operations": {
      operation: {
        "seconds": {
          form: found.total(operation, form)
          for form in implementations_lib.CHOICES[operation]
        },
        "seconds_of_rounds": of_layers,
      }
      for operation, of_layers in found.seconds.items()
    },
  }


def _table(found: Speed) -> rich.table.Table:
  """A row for each operation of each layer in each form, and for the sums."""
  table = rich.table.Table(
    title=f"\noperations of a step of {found.batch_size} images on one device, "
    "forward and backward, in ms",
    title_justify="left",
    box=None,
  )
  for header in ("operation", "layer", "form"):
    table.add_column(header)
  for header in ("median", "lowest", "highest", "of the plain one"):
    table.add_column(header, justify="right")
  table.add_column("")
  rule = found.rule
  for operation, of_layers in found.seconds.items():
    known = implementations_lib.CHOICES[operation]
    for layer, of_forms in of_layers.items():
      plain = statistics.median(of_forms[known[0]])
      for form in known:
        seconds = of_forms[form]
        middle = statistics.median(seconds)
        times = (middle, min(seconds), max(seconds))
        table.add_row(
          *(operation, layer, form, *map(_ms, times), f"{middle / plain:.2f}"),
        )
    plain = found.total(operation, known[0])
    for form in known:
      total = found.total(operation, form)
      words = [
        *(["the rule's"] if form == getattr(rule, operation) else []),
        *(["taken"] if form == getattr(found.taken, operation) else []),
        *(["faster"] if found.better().get(operation) == form else []),
      ]
      table.add_row(
        *(operation, "all", form, _ms(total), "", "", f"{total / plain:.2f}"),
        ", ".join(words),
      )
    table.add_section()
  return table


def _to_lines(found: Speed) -> list[str]:
  """What the table means."""
  better = found.better()
  lines = [
    f"on each of {found.devices} devices, all at once ({found.platform}); the "
    "rule's forms are those of --implementations=auto"
    if found.devices > 1
    else f"on one device ({found.platform}); the rule's forms are those of "
    "--implementations=auto"
  ]
  if better:
    named = ",".join(f"{name}={form}" for name, form in better.items())
    lines.append(
      "faster than what is taken by more than "
      f"{WORTH:.0%}: "
      f"--implementations={named}; alone, which --what=step holds to the whole step"
    )
  else:
    lines.append(
      f"no form is faster than what is taken by more than {WORTH:.0%}"
    )
  return lines


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}"

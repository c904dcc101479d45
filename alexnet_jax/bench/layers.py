"""The time of each layer of a step on one device, and of the other parts.

Each layer is compiled by itself, once forward and once forward and backward,
and so is each of its products. All take turns with the complete step. Only the
step contains fusions across layers and the time of exchanges.
"""

from __future__ import annotations

import dataclasses
import operator
import statistics
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import rich.table

from alexnet_jax.bench import peak, report, turns
from alexnet_jax.bench import pieces as pieces_lib
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import compiled_step, metrics, summary
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib

FORWARD, BOTH = "forward", "forward and backward"
PRODUCTS = ("forward", "by input", "by kernel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTime:
  """Seconds of one layer on one device, round by round.

  Attributes:
    images: on one device.
    flops_per_product: 2 for each multiplication.
    seconds: {`FORWARD`, `BOTH`: seconds}.
    products: {one of `PRODUCTS`: seconds}: the convolution or product alone.
  """

  images: int
  flops_per_product: int
  seconds: Mapping[str, list[float]]
  products: Mapping[str, list[float]]

  @property
  def backward_seconds(self) -> float:
    """What the backward pass adds to the forward pass: median of rounds."""
    return report.median_of_rounds(
      operator.sub, self.seconds[BOTH], self.seconds[FORWARD]
    )

  @property
  def products_seconds(self) -> float:
    """All products, forward and backward: sum of the medians."""
    return sum(map(statistics.median, self.products.values()))

  @property
  def flops(self) -> int:
    return self.flops_per_product * len(self.products)

  @property
  def flops_per_second(self) -> float:
    return self.flops / self.products_seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTimes(report.ProgramResult):
  """Seconds of a step and of its parts on one device, round by round.

  Attributes:
    layers: by name.
    others: {augmentation, loss, update: seconds}.
    step: seconds of the complete step.
    peak_flops_per_second: of a large product, its best round.
  """

  layers: Mapping[str, LayerTime]
  others: Mapping[str, list[float]]
  step: list[float]
  peak_flops_per_second: float

  @property
  def parts_seconds(self) -> float:
    """All layers and the other parts: sum of the medians."""
    both = [layer.seconds[BOTH] for layer in self.layers.values()]
    return sum(map(statistics.median, (*both, *self.others.values())))

  def tables(self) -> list[rich.table.Table]:
    return [self._layer_table(), self._product_table()]

  def _layer_table(self) -> rich.table.Table:
    table = summary.make_table(
      f"one device's part of a step of {self.batch_size} images, in ms",
      *("part", "> forward", "> backward", "> both", "> lowest", "> highest"),
      *("> of the step", "> products", "> the rest", "> MFLOP", "> GFLOP/s"),
      "> of the peak",
    )
    step = statistics.median(self.step)

    def times(seconds: list[float]) -> list[str]:
      share = statistics.median(seconds) / step
      return [*report.spread_ms(seconds), f"{share:.1%}"]

    def speed(flops: float, seconds: float) -> list[str]:
      return [f"{flops / 1e6:,.0f}", *self._to_cells(flops / seconds)]

    for name, layer in self.layers.items():
      both, products = layer.seconds[BOTH], layer.products_seconds
      table.add_row(
        name,
        report.to_ms(statistics.median(layer.seconds[FORWARD])),
        report.to_ms(layer.backward_seconds),
        *times(both),
        report.to_ms(products),
        report.to_ms(statistics.median(both) - products),
        *speed(layer.flops, products),
      )
    for name, seconds in self.others.items():
      table.add_row(name, "", "", *times(seconds))
    table.add_section()
    layers, parts = self.layers.values(), self.parts_seconds
    flops = sum(layer.flops for layer in layers)
    products = sum(layer.products_seconds for layer in layers)
    table.add_row(
      *("sum", "", "", report.to_ms(parts), "", "", f"{parts / step:.1%}"),
      *(report.to_ms(products), "", *speed(flops, products)),
    )
    table.add_row(
      *("the step", "", "", *times(self.step), "", "", *speed(flops, step))
    )
    table.add_row(
      *("not explained", "", "", report.to_ms(step - parts), "", ""),
      f"{1 - parts / step:.1%}",
    )
    return table

  def _product_table(self) -> rich.table.Table:
    table = summary.make_table(
      "the convolution or product of each layer alone",
      *("layer", "> MFLOP each"),
      *(
        header
        for product in PRODUCTS
        for header in (f"> {product}, ms", "> GFLOP/s", "> of the peak")
      ),
    )
    for name, layer in self.layers.items():
      cells = []
      for product in PRODUCTS:
        if product in layer.products:
          seconds = statistics.median(layer.products[product])
          rate = layer.flops_per_product / seconds
          cells += [report.to_ms(seconds), *self._to_cells(rate)]
        else:
          cells += ["-", "", ""]
      table.add_row(name, f"{layer.flops_per_product / 1e6:,.0f}", *cells)
    return table

  def _to_cells(self, flops_per_second: float) -> list[str]:
    """A rate in GFLOP/s, and as a part of the peak."""
    share = flops_per_second / self.peak_flops_per_second
    return [f"{flops_per_second / 1e9:,.1f}", f"{share:.1%}"]

  def lines(self) -> list[str]:
    options = ", ".join(f"{key}={it}" for key, it in self.xla_options.items())
    lines = [
      f"{self.on_devices()}; medians of {len(self.step)} rounds in "
      "which all take turns; backward is what it adds to forward",
      f"implementations: {self.implementations}; XLA options: "
      f"{options or 'none'}",
      "products: the convolutions or products of a layer by themselves; the "
      "rest: bias, activation, normalization, pooling, dropout",
      "the peak is the best round of a large product: "
      f"{self.peak_flops_per_second / 1e9:,.1f} GFLOP/s on each device; "
      "another library may convolve faster",
      "GFLOP/s of a layer are those of its convolutions or products alone, "
      "forward and backward",
    ]
    if self.devices > 1:
      lines.append("the step has exchanges, and its parts have none")
    return lines


def measure(
  program: program_lib.Program,
  options: report.Options,
  *,
  rounds: int,
  peak_side: int | None = None,
) -> LayerTimes:
  """Measures the layers of a step, its other parts, and the step.

  Args:
    peak_side: of the square matrices whose product is the peak; None: that of
      the platform.
  """
  platform = program.mesh.devices.flat[0].platform
  side = peak_side or peak.choose_side(platform)
  compiler = pieces_lib.Compiler(program.mesh, options)
  compiled, _ = compiled_step.compile_step(program, options=options)
  matrix = pieces_lib.Block((side, side), program.compute_dtype)
  calls = {
    "step": turns.StepRunner(program, compiled).start,
    "peak": compiler.make_call(jnp.matmul, matrix, matrix),
  }
  pieces = {piece.layer.name: piece for piece in pieces_lib.cut_layers(program)}
  for name, piece in pieces.items():
    blocks = piece.parameters, piece.statistics, piece.x, piece.drawn
    calls[name, FORWARD] = compiler.make_call(piece.run, *blocks)
    calls[name, BOTH] = compiler.make_call(piece.run_both, *blocks, piece.y)
    for which, (product, its_blocks) in piece.products().items():
      calls[name, "product", which] = compiler.make_call(product, *its_blocks)
  others = {
    "augmentation": _make_augmentation(program, compiler),
    "loss": _make_loss(program, compiler),
    "update": _make_update(program, compiler),
  }
  seconds = turns.take_turns(
    calls | others, rounds=rounds, in_order=platform != "cpu"
  )
  layers = {}
  for name, piece in pieces.items():
    products = {
      which: seconds[name, "product", which] for which in piece.products()
    }
    share = program.device_loads[name]
    layers[name] = LayerTime(
      images=share.images,
      flops_per_product=share.flops // len(products),
      seconds={key: seconds[name, key] for key in (FORWARD, BOTH)},
      products=products,
    )
  return LayerTimes(
    **report.describe(program, options),
    layers=layers,
    others={name: seconds[name] for name in others},
    step=seconds["step"],
    peak_flops_per_second=2 * side**3 / min(seconds["peak"]),
  )


def _make_augmentation(
  program: program_lib.Program, compiler: pieces_lib.Compiler
) -> Callable[[], object]:
  """All random numbers of a step, and the augmented images."""
  specs, augmentation = program.specs, program.augmentation

  def augment(key, step, images):
    draws, of_layers = specs_lib.draw_random_numbers(
      program.network, specs, augmentation, key, step, program.batch_size
    )
    x = jax.shard_map(
      lambda images, draws: augmentation.apply(images, draws).astype(
        program.compute_dtype
      ),
      in_specs=(specs.images, specs.images),
      out_specs=specs.images,
    )(images, draws)
    return x, of_layers

  side = augmentation.stored_size
  images = jax.device_put(
    jnp.zeros((program.batch_size, side, side, 3), jnp.uint8),
    program.batch_shardings[0],
  )
  arguments = jax.random.key(1), jnp.zeros((), jnp.int32), images
  compiled = compiler.compile(program.trace_part(augment, *arguments))
  return lambda: compiled(*arguments)


def _make_loss(
  program: program_lib.Program, compiler: pieces_lib.Compiler
) -> Callable[[], object]:
  """The totals of a step, and the gradient of the loss by the logits."""
  labels = program.batch_shardings[1].shard_shape((program.batch_size,))
  classes = program.network.layers[-1].features

  def loss(logits, labels):
    def add_up(logits):
      totals = metrics.totals(logits, labels, smoothing=program.label_smoothing)
      return totals[0] / program.batch_size, totals

    return jax.grad(add_up, has_aux=True)(logits)

  return compiler.make_call(
    loss,
    pieces_lib.Block((*labels, classes), jnp.float32),
    pieces_lib.Block(labels, jnp.int32),
  )


def _make_update(
  program: program_lib.Program, compiler: pieces_lib.Compiler
) -> Callable[[], step_lib.TrainState]:
  """The update of a step; it donates the state, as the step does."""
  state = program.init(jax.random.key(0))
  noise = program.init(jax.random.key(1)).parameters
  gradients = {name: noise[name] for name in program.network.trained}
  rest = gradients, jnp.ones(())

  def update(state, gradients, loss):
    optimizer, exchange = program.optimizer, program.exchange
    return step_lib.update(
      optimizer, exchange, state, gradients, state.statistics, loss
    )

  compiled = compiler.compile(
    program.trace_part(update, state, *rest, donated=(0,))
  )

  def call() -> step_lib.TrainState:
    nonlocal state
    state = compiled(state, *rest)
    return state

  return call

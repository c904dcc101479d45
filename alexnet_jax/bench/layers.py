"""How long one device takes for each layer of a step, and for the rest of it.

Every layer is compiled by itself, forward and forward with backward, and so is
each of its products; all take turns with the whole step. What is fused over the
border of two layers, and what the exchanges take, is in the step alone.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import rich.table

from alexnet_jax.bench import pieces as pieces_lib
from alexnet_jax.bench import step as bench_step
from alexnet_jax.bench import turns
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import compiled_step, compiler_options, metrics
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib

FORWARD, BOTH = "forward", "forward and backward"
# Beside the layers.
RESTS = ("augmentation", "loss", "update")
STEP, PEAK = "step", "peak"
# Sides of the product that the peak is measured with: large for the platform.
PEAK_SIDES = {"cpu": 2048}
PEAK_SIDE = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """Seconds of one device, round by round.

  Attributes:
    layers: {layer: {`FORWARD`, `BOTH`: seconds}}.
    products: {layer: {"forward", "by input", "by kernel": seconds}}, of the
      convolution or product alone.
    rests: {one of `RESTS`: seconds}.
    step: of the whole step.
    flops: {layer: of each of its products}; 2 for each multiplication.
    peak_flops: of a large product, in a second, at its best.
    images: {layer: on one device}.
    batch_size: images in a step, over all devices.
    devices: that compute at once.
    platform: gpu, tpu or cpu.
    implementations: how operations are computed.
    options: for the compiler.
  """

  layers: Mapping[str, Mapping[str, list[float]]]
  products: Mapping[str, Mapping[str, list[float]]]
  rests: Mapping[str, list[float]]
  step: list[float]
  flops: Mapping[str, int]
  peak_flops: float
  images: Mapping[str, int]
  batch_size: int
  devices: int
  platform: str
  implementations: implementations_lib.Implementations
  options: Mapping[str, compiler_options.Value]

  def backward(self, layer: str) -> float:
    """Seconds that the backward pass adds to the forward one: median."""
    of_layer = self.layers[layer]
    pairs = zip(of_layer[FORWARD], of_layer[BOTH], strict=True)
    return statistics.median(both - forward for forward, both in pairs)

  def of_products(self, layer: str) -> float:
    """Seconds of a layer's products: sum of the medians."""
    return sum(map(statistics.median, self.products[layer].values()))

  def flops_per_second(self, layer: str) -> float:
    """Of a layer's products, forward and backward."""
    return (
      self.flops[layer] * len(self.products[layer]) / self.of_products(layer)
    )

  def parts(self) -> float:
    """Seconds of all layers and of the rests: sum of the medians."""
    both = [of_layer[BOTH] for of_layer in self.layers.values()]
    return sum(map(statistics.median, (*both, *self.rests.values())))


def measure(
  program: program_lib.Program,
  options: Mapping[str, compiler_options.Value],
  *,
  rounds: int,
  peak_side: int | None = None,
) -> Speed:
  """Measures the layers of a step, what is beside them, and the step.

  Args:
    program: of the step.
    options: for the compiler, as the step has them.
    rounds: how often each is measured.
    peak_side: of the square matrices whose product is the peak; None: by the
      platform.
  """
  platform = program.mesh.devices.flat[0].platform
  side = peak_side or PEAK_SIDES.get(platform, PEAK_SIDE)
  maker = pieces_lib.Maker(program, options)
  compiled, _ = compiled_step.compile_step(program, options=options)
  calls = {STEP: bench_step.Steps(program, compiled).start}
  matrix = pieces_lib.Block((side, side), program.compute_dtype)
  calls[PEAK] = maker.call(jnp.matmul, matrix, matrix)
  pieces = pieces_lib.cut(program)
  for piece in pieces:
    name = piece.layer.name
    blocks = piece.parameters, piece.statistics, piece.x, piece.drawn
    calls[name, FORWARD] = maker.call(piece.run, *blocks)
    calls[name, BOTH] = maker.call(piece.run_both, *blocks, piece.y)
    for what, (product, of_product) in piece.products().items():
      calls[name, "product", what] = maker.call(product, *of_product)
  calls |= dict(
    zip(
      RESTS,
      (_augmentation(program, maker), _loss(program, maker), _Update(maker)),
      strict=True,
    )
  )
  seconds = turns.take_turns(calls, rounds=rounds, in_order=platform != "cpu")
  names = [piece.layer.name for piece in pieces]
  products = {
    name: {
      key[2]: seconds[key] for key in calls if key[:2] == (name, "product")
    }
    for name in names
  }
  return Speed(
    layers={
      name: {what: seconds[name, what] for what in (FORWARD, BOTH)}
      for name in names
    },
    products=products,
    rests={name: seconds[name] for name in RESTS},
    step=seconds[STEP],
    flops={
      name: program.shares[name].flops // len(products[name]) for name in names
    },
    peak_flops=2 * side**3 / min(seconds[PEAK]),
    images={name: program.shares[name].images for name in names},
    batch_size=program.batch_size,
    devices=program.mesh.size,
    platform=platform,
    implementations=program.implementations,
    options=dict(options),
  )


def _augmentation(
  program: program_lib.Program, maker: pieces_lib.Maker
) -> Callable[[], object]:
  """All draws of a step, and the images for the network."""
  specs, augmentation = program.specs, program.augmentation

  def augment(key, step, images):
    draws, of_layers = specs_lib.draw_all(
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
  compiled = maker.compile(program.trace_part(augment, *arguments))
  return lambda: compiled(*arguments)


def _loss(
  program: program_lib.Program, maker: pieces_lib.Maker
) -> Callable[[], object]:
  """The totals of a step, and the gradient of the loss by the logits."""
  labels = program.batch_shardings[1].shard_shape((program.batch_size,))
  classes = program.network.layers[-1].features

  def loss(logits, labels):
    def add_up(logits):
      totals = metrics.totals(
        logits.astype(jnp.float32), labels, smoothing=program.label_smoothing
      )
      return totals[0] / program.batch_size, totals

    return jax.grad(add_up, has_aux=True)(logits)

  return maker.call(
    loss,
    pieces_lib.Block((*labels, classes), program.compute_dtype),
    pieces_lib.Block(labels, jnp.int32),
  )


class _Update:
  """The update of a step; it takes up the state, as the step does."""

  def __init__(self, maker: pieces_lib.Maker):
    program = maker.program
    self._state = program.init(jax.random.key(0))
    self._gradients = program.init(jax.random.key(1)).parameters
    self._loss = jnp.ones(())

    def update(state, gradients, loss):
      return step_lib.update(
        program.optimizer,
        program.exchange,
        state,
        gradients,
        state.statistics,
        loss,
      )

    self._compiled = maker.compile(
      program.trace_part(
        update, self._state, self._gradients, self._loss, donated=(0,)
      )
    )

  def __call__(self) -> step_lib.TrainState:
    self._state = self._compiled(self._state, self._gradients, self._loss)
    return self._state


def show(found: Speed) -> turns.Shown:
  """What is measured, as data, as tables, and what these mean."""
  tables = [_layer_table(found), _product_table(found)]
  return turns.Shown(_to_data(found), tables, _to_lines(found))


def _to_data(found: Speed) -> dict:
  """What the tables show, as data, and the seconds of every round."""
  return {
    "platform": found.platform,
    "devices": found.devices,
    "batch_size": found.batch_size,
    "implementations": str(found.implementations),
    "xla_options": dict(found.options),
    "peak_flops_per_second": found.peak_flops,
    "layers": {
      name: {
        "images": found.images[name],
        "forward_seconds": statistics.median(of_layer[FORWARD]),
        "backward_seconds": found.backward(name),
        "products_seconds": found.of_products(name),
        "flops": found.flops[name] * len(found.products[name]),
        "flops_per_second": found.flops_per_second(name),
        "seconds_of_rounds": dict(of_layer),
        "products": {
          what: {
            "flops": found.flops[name],
            "seconds": statistics.median(seconds),
            "seconds_of_rounds": seconds,
          }
          for what, seconds in found.products[name].items()
        },
      }
      for name, of_layer in found.layers.items()
    },
    **{
      name: {
        "seconds": statistics.median(seconds),
        "seconds_of_rounds": seconds,
      }
      for name, seconds in {**found.rests, STEP: found.step}.items()
    },
    "parts_seconds": found.parts(),
  }


def _layer_table(found: Speed) -> rich.table.Table:
  """A row for each layer, for what is beside them, and for the whole step."""
  table = rich.table.Table(
    title=f"\none device's share of a step of {found.batch_size} images, in ms",
    title_justify="left",
    box=None,
  )
  table.add_column("part")
  for header in (
    *("forward", "backward", "both", "lowest", "highest", "of the step"),
    *("products", "the rest", "MFLOP", "GFLOP/s", "of the peak"),
  ):
    table.add_column(header, justify="right")
  step = statistics.median(found.step)

  def times(seconds: list[float]) -> list[str]:
    middle = statistics.median(seconds)
    numbers = (middle, min(seconds), max(seconds))
    return [*map(_ms, numbers), f"{middle / step:.1%}"]

  for name, of_layer in found.layers.items():
    rate = found.flops_per_second(name)
    table.add_row(
      name,
      _ms(statistics.median(of_layer[FORWARD])),
      _ms(found.backward(name)),
      *times(of_layer[BOTH]),
      _ms(found.of_products(name)),
      _ms(statistics.median(of_layer[BOTH]) - found.of_products(name)),
      f"{found.flops[name] * len(found.products[name]) / 1e6:,.0f}",
      f"{rate / 1e9:,.1f}",
      f"{rate / found.peak_flops:.1%}",
    )
  for name, seconds in found.rests.items():
    table.add_row(name, "", "", *times(seconds))
  parts = found.parts()
  table.add_section()
  flops = sum(
    found.flops[name] * len(found.products[name]) for name in found.layers
  )
  products = sum(map(found.of_products, found.layers))
  table.add_row(
    *("sum", "", "", _ms(parts), "", "", f"{parts / step:.1%}"),
    *(_ms(products), "", f"{flops / 1e6:,.0f}"),
    f"{flops / products / 1e9:,.1f}",
    f"{flops / products / found.peak_flops:.1%}",
  )
  table.add_row(
    *("the step", "", "", *times(found.step), "", "", f"{flops / 1e6:,.0f}"),
    *(f"{flops / step / 1e9:,.1f}", f"{flops / step / found.peak_flops:.1%}"),
  )
  table.add_row(
    *("not explained", "", "", _ms(step - parts), "", ""),
    f"{1 - parts / step:.1%}",
  )
  return table


def _product_table(found: Speed) -> rich.table.Table:
  """A row for each layer: its products, one by one."""
  table = rich.table.Table(
    title="\nthe convolution or product of each layer alone",
    title_justify="left",
    box=None,
  )
  table.add_column("layer")
  table.add_column("MFLOP each", justify="right")
  for what in ("forward", "by input", "by kernel"):
    for header in (f"{what}, ms", "GFLOP/s", "of the peak"):
      table.add_column(header, justify="right")
  for name, products in found.products.items():
    cells = []
    for what in ("forward", "by input", "by kernel"):
      if what not in products:
        cells += ["-", "", ""]
        continue
      seconds = statistics.median(products[what])
      rate = found.flops[name] / seconds
      cells += [
        *(_ms(seconds), f"{rate / 1e9:,.1f}"),
        f"{rate / found.peak_flops:.1%}",
      ]
    table.add_row(name, f"{found.flops[name] / 1e6:,.0f}", *cells)
  return table


def _to_lines(found: Speed) -> list[str]:
  """What the tables mean."""
  devices = "one device"
  if found.devices > 1:
    devices = f"each of {found.devices} devices, all at once"
  options = ", ".join(f"{name}={it}" for name, it in found.options.items())
  return [
    f"on {devices} ({found.platform}); medians of {len(found.step)} rounds in "
    "which all take turns; backward is what it adds to forward",
    f"implementations: {found.implementations}; XLA options: {options or 'none'}",
    "products: the convolutions or products of a layer by themselves; the "
    "rest: bias, activation, normalization, pooling, dropout",
    f"the peak is a large product at its best: {found.peak_flops / 1e9:,.1f} "
    "GFLOP/s on each device; another library may convolve faster",
    "GFLOP/s of a layer are those of its convolutions or products alone, "
    "forward and backward",
    *(
      ["the step has exchanges, which none of its parts has"]
      if found.devices > 1
      else []
    ),
  ]


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}"

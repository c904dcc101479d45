"""Parts of a step in the shapes that layouts give them, each timed alone.

All devices of all processes compute the same at once. Of a call on simulated
devices, the time of one that computes almost nothing is subtracted: a step is a
single call.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.bench import peak, report, turns
from alexnet_jax.bench import pieces as pieces_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine as host_lib
from alexnet_jax.partition import check, per_device, timing
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import devices as devices_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib

FORWARD, BACKWARD = machine_lib.FORWARD, machine_lib.BACKWARD
BOTH = "forward and backward"
# Matrices, as activations and kernels are.
_TRANSPOSED = ((512, 256), (1024, 1024), (4096, 2048))
# The smallest part of a call that counts as its own work.
_LEAST = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A part of a step that is measured alone; see `machine.Measured`.

  Attributes:
    work: as in `machine.PARTS`, in that order.
    functions: {pass, or `BOTH`: (function, its blocks)}.
    donates: whether the first block is overwritten by the result.
  """

  what: str
  geometry: str
  work: tuple[int, ...]
  functions: Mapping[str, tuple[Callable, tuple]]
  donates: bool = False

  @property
  def flops(self) -> int:
    """Of each function."""
    return 2 * self.work[0] if self.what == "product" else 0


def find_layouts(
  program: program_lib.Program,
) -> Iterator[tuple[layout_lib.Layout, plan_lib.Routes]]:
  """Yields layouts whose layers have the shapes to measure, and their routes.

  An axis is named for the dimension that it splits in every layer that can be
  split there.
  """
  devices, network = program.mesh.size, program.network
  shapes: list[dict[str, int]] = [{"batch": 1}]
  if devices == 1:
    shapes += [{"batch": 2}, {"batch": 4}]
  else:
    shapes += [{name: devices} for name in ("batch", "outputs", "inputs")]
  if devices >= 4 and devices % 2 == 0:
    shapes.append({"batch": 2, "outputs": devices // 2})
    shapes.append({"outputs": 2, "inputs": devices // 2})
  sizes = network.sizes()
  for mesh in shapes:
    name = "x".join(f"{count} {field}" for field, count in mesh.items())
    bare = layout_lib.Layout(name=name, mesh=mesh)
    placements = {}
    for layer in network.layers:
      placement = layout_lib.Placement(**{field: (field,) for field in mesh})
      try:
        check.check_placement(
          bare, network, layer, sizes[layer.name], placement
        )
      except ValueError:  # this layer cannot be split so
        placement = layout_lib.Placement()
      placements[layer.name] = placement
    layout = dataclasses.replace(bare, layers=placements)
    try:
      check.check(layout, network, batch_size=program.batch_size)
      routes = plan_lib.choose_routes(
        network,
        layout,
        batch_size=program.batch_size,
        exchange_dtype=program.exchange_dtype,
      )
    except ValueError:
      continue  # it does not fit, or the orders of axes of two layers do not
    yield layout, routes


def find_parts(program: program_lib.Program) -> list[Part]:
  """Finds the parts to measure, each distinct one once."""
  # A machine serves all networks, so nothing of this one is frozen.
  network = dataclasses.replace(program.network, frozen=())
  program, found = dataclasses.replace(program, network=network), {}
  sizes, kinds = network.sizes(), collections.defaultdict(dict)
  for layout, routes in find_layouts(program):
    pieces = pieces_lib.cut_layout(
      network,
      layout,
      routes,
      compute_dtype=program.compute_dtype,
      implementations=program.implementations,
    )
    loads = per_device.find_loads(
      network,
      layout,
      batch_size=program.batch_size,
      compute_dtype=program.compute_dtype,
      exchange_dtype=program.exchange_dtype,
    )
    for piece in pieces:
      layer, load = piece.layer, loads[piece.layer.name]
      size = sizes[layer.name]
      for part in (
        _make_product(piece, load, size),
        Part(
          what="rest",
          geometry=price.rest_geometry(layer),
          work=(load.kept_images * load.values,),
          functions=piece.rest(load.kept_images),
        ),
      ):
        found.setdefault((part.what, part.geometry, part.work), part)
      kinds["update"].setdefault(load.parameters, piece)
      if piece.drawn:
        values = math.prod(size.out_shape) * load.values // size.outputs
        kinds["random"].setdefault(load.kept_images * values, piece)
      if layer.reads == "image":
        kinds["augmentation"].setdefault(load.images, piece)
  return [
    *found.values(),
    *_make_others(program, kinds),
    *map(_make_transpose, _TRANSPOSED),
  ]


def _make_transpose(shape: tuple[int, int]) -> Part:
  return Part(
    what="transpose",
    geometry="transpose",
    work=(math.prod(shape),),
    functions={
      FORWARD: (jnp.transpose, (pieces_lib.Block(shape, jnp.float32),))
    },
  )


def _make_product(
  piece: pieces_lib.Piece, load: per_device.DeviceLoad, size
) -> Part:
  """The product of a layer; its work is that of `Pricer.price_product`."""
  area = size.map_side**2
  return Part(
    what="product",
    geometry=price.product_geometry(piece.layer, size),
    work=(
      load.images * load.multiplications,
      load.multiplications // area,
      load.images * size.positions * load.inputs,
      load.images * area * load.outputs,
    ),
    functions=piece.products(),
  )


def _make_others(
  program: program_lib.Program, kinds: Mapping[str, Mapping[int, Any]]
) -> Iterator[Part]:
  """What is no layer's: its smallest and its largest size, and one between."""
  make = {
    "update": _make_update,
    "augmentation": _make_augmentation,
    "random": _make_random,
  }
  for what, by_size in kinds.items():
    ordered = sorted(by_size)
    for size in dict.fromkeys(
      ordered[index] for index in (0, len(ordered) // 2, -1)
    ):
      work, function, blocks = make[what](program, size, by_size[size])
      yield Part(
        what=what,
        geometry=what,
        work=(work,),
        functions={FORWARD: (function, blocks)},
        donates=what == "update",
      )


class _LocalNorms:
  """The norms of what one device holds; see `MeshExchange.squared_norms`."""

  @staticmethod
  def squared_norms(*trees) -> list[dict[str, jax.Array]]:
    return [
      {
        name: jnp.sum(jnp.square(leaves["kernel"]))
        for name, leaves in t.items()
      }
      for t in trees
    ]


def _make_update(program, parameters: int, piece: pieces_lib.Piece) -> tuple:
  """The update of one layer's parameters."""
  blocks = {piece.layer.name: dict(piece.parameters)}
  state = step_lib.TrainState(
    step=pieces_lib.Block((), jnp.int32),
    is_finite=pieces_lib.Block((), jnp.bool),
    parameters=blocks,
    optimizer=jax.eval_shape(program.optimizer.init, blocks),
    statistics={},
  )

  def update(state, gradients, loss):
    return step_lib.update(
      program.optimizer, _LocalNorms(), state, gradients, {}, loss
    )

  return parameters, update, (state, blocks, pieces_lib.Block((), jnp.float32))


def _make_augmentation(program, images: int, piece: pieces_lib.Piece) -> tuple:
  """The random numbers and the augmented images of one device."""
  augmentation, side = program.augmentation, program.augmentation.stored_size

  def augment(key_data, pictures):
    key = jax.random.wrap_key_data(key_data)
    drawn = augmentation.draw(key, images, spec=None)
    return augmentation.apply(pictures, drawn).astype(program.compute_dtype)

  pictures = pieces_lib.Block((images, side, side, 3), jnp.uint8)
  return images * side**2, augment, (_key_block(), pictures)


def _make_random(program, values: int, piece: pieces_lib.Piece) -> tuple:
  """A mask of dropout, or uniform numbers where only these are drawn."""

  def draw(key_data):
    key = jax.random.wrap_key_data(key_data)
    if piece.layer.dropout:
      return jax.random.bernoulli(key, np.float32(0.5), (values,))
    return jax.random.uniform(key, (values,), np.float32)

  return values, draw, (_key_block(),)


def _key_block() -> pieces_lib.Block:
  data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
  return pieces_lib.Block(data.shape, data.dtype)


class Timer:
  """Times work of one device on all devices of all processes at once.

  Attributes:
    dtype: of the computation.
    launch_seconds: of a call that computes almost nothing.
    overhead_seconds: of a call that are not its work; they are subtracted.
    flops_per_second, bytes_per_second: of one device, and of its memory.
  """

  def __init__(
    self,
    program: program_lib.Program,
    options: report.Options,
    group: group_lib.Group,
    *,
    rounds: int,
  ):
    self.group, self.rounds, self.dtype = group, rounds, program.compute_dtype
    self._count = 0
    self._local = [
      device
      for device in program.mesh.devices.flat
      if device.process_index == jax.process_index()
    ]
    # A process cannot put arrays on the devices of another.
    mesh = jax.make_mesh((len(self._local),), ("own",), devices=self._local)
    self._compiler = pieces_lib.Compiler(mesh, options)
    self.in_order = self._local[0].platform != "cpu"
    number = pieces_lib.Block((), jnp.float32)
    add = self._compiler.make_call(jnp.add, number, number)
    self.launch_seconds = self.take_turns({"launch": add})["launch"]
    self.overhead_seconds = 0.0 if self.in_order else self.launch_seconds
    self.flops_per_second, self.bytes_per_second = (
      -max(self.find_slowest([-best / len(self._local)]))
      for best in (
        self._find_best(lambda: peak.Product(self._local, self.dtype)),
        self._find_best(lambda: peak.Copy(self._local)),
      )
    )

  def _find_best(self, make: Callable) -> float:
    probe = make()
    self.find_slowest([])  # all begin at once
    return max(probe.measure() for _ in range(self.rounds))

  def find_slowest(self, values: Sequence[float]) -> list[float]:
    """Returns the largest of each value over all processes, which wait."""
    self._count += 1
    gathered = self.group.gather(f"machine/{self._count}", list(values))
    return [max(of_one) for of_one in zip(*gathered, strict=True)]

  def take_turns(self, calls: Mapping[str, Callable]) -> dict[str, float]:
    """Returns the median seconds of each call, of the slowest process."""
    self.find_slowest([])
    seconds = turns.take_turns(
      calls, rounds=self.rounds, in_order=self.in_order
    )
    medians = map(statistics.median, seconds.values())
    return dict(zip(calls, self.find_slowest([*medians]), strict=True))

  def subtract_call(self, seconds: float) -> float:
    """Subtracts what a call takes by itself."""
    return max(seconds - self.overhead_seconds, _LEAST * seconds)

  def measure(self, part: Part) -> dict[str, Any]:
    """Measures a part; returns its entry in a machine file."""
    names = machine_lib.PARTS[part.what].work
    return {
      "what": part.what,
      "geometry": part.geometry,
      "dtype": self.dtype,
      "work": dict(zip(names, part.work, strict=True)),
      "seconds": self.time_part(part),
    }

  def time_part(self, part: Part) -> dict[str, float]:
    """Returns {pass: seconds} of a part."""
    calls = {
      name: self._make_call(function, blocks, donates=part.donates)
      for name, (function, blocks) in part.functions.items()
    }
    seconds = {
      name: self.subtract_call(value)
      for name, value in self.take_turns(calls).items()
    }
    if BOTH in seconds:
      both = seconds.pop(BOTH)
      seconds[BACKWARD] = max(both - seconds[FORWARD], _LEAST * both)
    return seconds

  def _make_call(
    self, function: Callable, blocks: tuple, *, donates: bool
  ) -> Callable[[], object]:
    if not donates:
      return self._compiler.make_call(function, *blocks)
    mesh = self._compiler.mesh
    state, *rest = timing.make_noise(mesh, blocks)
    compiled = self._compiler.compile(
      jax.jit(timing.on_each_device(mesh, function), donate_argnums=(0,)).trace(
        state, *rest
      )
    )

    def call() -> object:
      nonlocal state
      state = compiled(state, *rest)
      return state

    return call

  def find_memory(self, number: Callable) -> dict[str, Any]:
    """Finds the memory of one device, the smallest of all processes."""
    limits = [devices_lib.find_memory(one)["limit"] for one in self._local]
    note = "limit of the device"
    if None in limits:
      total = host_lib.find_memory()[0] or 0
      limits = [total // (len(self._local) * self.group.num_on_host)]
      note = "memory of a host, divided by its devices"
    (least,) = self.find_slowest([-min(limits)])
    return number(-least, note)

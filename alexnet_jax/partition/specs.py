"""Network and layout -> how every array of a step is split over the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import resharding

ParameterSpecs = dict[str, dict[str, PartitionSpec]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specs:
  """The split of every array that enters or leaves the mapped function.

  Attributes:
    parameters: {layer: {"kernel": spec, "bias": spec}}, of global shapes, as
      they are stored; a batch normalization's "scale" too.
    statistics: {layer: {"mean": spec, "variance": spec}}, of layers with batch
      normalization.
    gathers: {(layer, "kernel"): (axes, dimension)}: what is stored in shares,
      and how these are joined before use.
    shared: {layer: {name: axes}}, as the parameters: axes along which devices
      use one parameter for different work, so that its gradient is summed.
    images: of [N, ...] arrays that belong to images.
    labels: of [N] arrays that belong to logits.
    masks: {layer: spec} of bool[N, units] or bool[N, h, w, maps], for layers
      with dropout.
    points: {layer: spec} of f32[N, h, w, maps], for layers with stochastic
      pooling.
    whole: of what is the same everywhere.
  """

  parameters: ParameterSpecs
  statistics: ParameterSpecs
  gathers: Mapping[tuple[str, str], tuple[tuple[str, ...], int]]
  shared: Mapping[str, Mapping[str, tuple[str, ...]]]
  images: PartitionSpec
  labels: PartitionSpec
  masks: Mapping[str, PartitionSpec]
  points: Mapping[str, PartitionSpec]
  whole: PartitionSpec = PartitionSpec()

  @property
  def kernel_axes(self) -> tuple[str, ...]:
    """The axes that split any kernel as it is stored."""
    return tuple(
      dict.fromkeys(
        axis
        for of_layer in self.parameters.values()
        for axis in axes_of(of_layer["kernel"])
      )
    )

  @property
  def variables(self) -> ParameterSpecs:
    """Of parameters and statistics, as `model.join` joins them."""
    return {
      name: blocks | self.statistics.get(name, {})
      for name, blocks in self.parameters.items()
    }


def make_specs(
  network: wiring.Network,
  layout: layout_lib.Layout,
  routes: Mapping[str, resharding.LayerRoute],
) -> Specs:
  """The specs that follow from a network, a layout and its routes."""
  parameters, gathers, shared = {}, {}, {}
  masks, points, statistics = {}, {}, {}
  sizes = network.sizes()
  for layer in network.layers:
    route = routes[layer.name]
    fsdp = layout.placement(layer.name).fsdp
    outputs = route.leaves.features
    kernel_axes = route.sums or outputs
    kernel = [route.sums, () if route.sums else outputs]
    if fsdp:
      dimension = layout_lib.fsdp_dimension(layer.name)
      kernel[dimension] = (*kernel[dimension], *fsdp)
      gathers[layer.name, "kernel"] = fsdp, dimension
    window = [None, None] if layer.window else []
    leaves = _spec(route.leaves.batch, *window, outputs)
    places = [None] * (len(sizes[layer.name].kernel) - len(kernel))
    parameters[layer.name] = {
      "kernel": _spec(*places, *kernel),
      "bias": _spec(outputs),
    }
    shared[layer.name] = {
      "kernel": _without(route.arrived.varying, (*kernel_axes, *fsdp)),
      "bias": _without(route.leaves.varying, outputs),
    }
    if layer.normalize == "batch":
      parameters[layer.name]["scale"] = _spec(outputs)
      shared[layer.name]["scale"] = shared[layer.name]["bias"]
      statistics[layer.name] = {
        "mean": _spec(outputs),
        "variance": _spec(outputs),
      }
    if layer.dropout:
      masks[layer.name] = leaves
    if layer.pool and layer.pool.kind == "stochastic":
      points[layer.name] = leaves
  first, last = network.layers[0].name, network.layers[-1].name
  return Specs(
    parameters=parameters,
    statistics=statistics,
    gathers=gathers,
    shared=shared,
    images=_spec(routes[first].arrived.batch),
    labels=_spec(routes[last].leaves.batch),
    masks=masks,
    points=points,
  )


def axes_of(spec: PartitionSpec) -> tuple[str, ...]:
  """The axes that split an array of that spec."""
  return tuple(
    axis
    for names in spec
    for axis in ((names,) if isinstance(names, str) else names or ())
  )


def to_shardings(mesh: jax.sharding.Mesh, specs):
  """Replaces each PartitionSpec of a pytree by a sharding on `mesh`."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
  )


def with_shardings(mesh: jax.sharding.Mesh, abstract):
  """Puts what `jax.eval_shape` found under a mesh onto its devices.

  Args:
    mesh: that `jax.eval_shape` ran under.
    abstract: a pytree of `jax.ShapeDtypeStruct`.

  Returns:
    The same with shardings on `mesh`.
  """

  def place(leaf):
    spec = leaf.sharding.spec if leaf.sharding else PartitionSpec()
    return leaf.update(sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, abstract)


def _spec(*axes: tuple[str, ...] | None) -> PartitionSpec:
  return PartitionSpec(*(names or None for names in axes))


def _without(
  axes: tuple[str, ...], removed: tuple[str, ...]
) -> tuple[str, ...]:
  return tuple(axis for axis in axes if axis not in removed)


# What a step draws for the layers of a network.
#
# In the global view, so that every layout draws the same, and split as the
# outputs are that the draws belong to.


def draw_all(
  network: wiring.Network,
  specs: Specs,
  augmentation,
  key: jax.Array,
  step: jax.Array,
  n: int,
) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
  """All that a step draws: for its images, and for the layers.

  Args:
    network: the network.
    specs: of its arrays.
    augmentation: of the images; see `data/augment.py`.
    key: the same for all steps.
    step: i32[], steps before this one.
    n: images in the batch, over all devices.
  """
  augment_key, *keys = jax.random.split(
    jax.random.fold_in(key, step), 1 + count(specs)
  )
  draws = augmentation.draw(augment_key, n, spec=specs.images, step=step)
  return draws, draw(network, specs, keys, n)


def draw(
  network: wiring.Network,
  specs: Specs,
  keys: Sequence[jax.Array],
  n: int,
) -> dict[str, dict[str, jax.Array]]:
  """Draws for one batch; to be called under the layout's mesh.

  Args:
    network: the network.
    specs: of its arrays.
    keys: as many as `count` says.
    n: images in the batch, over all devices.

  Returns:
    {"masks": {layer: bool[N, ...]}, "points": {layer: f32[N, ...]}}: what
    dropout keeps, and where stochastic pooling points; see `model.AlexNet`.
  """
  shapes = {
    name: (n, *size.out_shape) for name, size in network.sizes().items()
  }
  masks, points = {}, {}
  for layer, key in zip(specs.masks, keys, strict=False):
    masks[layer] = jax.random.bernoulli(
      key,
      network.keep_rate(layer),
      shapes[layer],
      out_sharding=specs.masks[layer],
    )
  for layer, key in zip(specs.points, keys[len(masks) :], strict=True):
    points[layer] = jax.random.uniform(
      key, shapes[layer], out_sharding=specs.points[layer]
    )
  return {"masks": masks, "points": points}


def count(specs: Specs) -> int:
  """Keys that `draw` takes."""
  return len(specs.masks) + len(specs.points)


def to_specs(specs: Specs) -> dict[str, dict[str, PartitionSpec]]:
  """The splits of what `draw` returns."""
  return {"masks": dict(specs.masks), "points": dict(specs.points)}

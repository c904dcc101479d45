"""The PartitionSpec of every array of a step, from network and layout.

The random numbers of a step are drawn here too: on global arrays, so that every
layout draws the same, and sharded as the layers need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import resharding

ParameterSpecs = dict[str, dict[str, PartitionSpec]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specs:
  """The spec of every array that enters or leaves the mapped function.

  Attributes:
    parameters: {layer: {"kernel": spec, "bias": spec}}, of global shapes, as
      they are stored; a batch normalization's "scale" too.
    statistics: {layer: {"mean": spec, "variance": spec}}, of layers with batch
      normalization.
    gathers: {(layer, "kernel"): (axes, dimension)}, of each kernel that is
      stored sharded and all-gathered before use.
    gradient_sums: {layer: {name: axes}}, as the parameters: axes along which
      devices use one parameter for different work, so its gradient is summed.
      With batch normalization, "statistics" has the axes that split its images;
      the sums along them are also the gradients of bias and scale.
    images: of [N, ...] arrays that belong to images.
    labels: of [N] arrays that belong to logits.
    predicted: of [copies, N] arrays that follow from logits, as the loss takes
      them; copies as in `activations`.
    masks: {layer: spec} of bool[N, units] or bool[N, h, w, maps], for layers
      with dropout.
    uniforms: {layer: spec} of f32[N, h, w, maps], for layers with stochastic
      pooling.
    activations: {layer: spec} of the outputs as they are sharded, f32[copies,
      N, units] or f32[copies, N, h, w, maps]: along the first dimension are the
      equal copies that devices hold after a gather.
    kernel_axes: the axes that split any stored kernel that is trained.
    replicated: of arrays that are replicated.
  """

  parameters: ParameterSpecs
  statistics: ParameterSpecs
  gathers: Mapping[tuple[str, str], tuple[tuple[str, ...], int]]
  gradient_sums: Mapping[str, Mapping[str, tuple[str, ...]]]
  images: PartitionSpec
  labels: PartitionSpec
  predicted: PartitionSpec
  masks: Mapping[str, PartitionSpec]
  uniforms: Mapping[str, PartitionSpec]
  activations: Mapping[str, PartitionSpec]
  kernel_axes: tuple[str, ...]
  replicated: PartitionSpec = PartitionSpec()

  @property
  def variables(self) -> ParameterSpecs:
    """Of parameters and statistics, as `model.join_variables` joins them."""
    return {
      name: of_layer | self.statistics.get(name, {})
      for name, of_layer in self.parameters.items()
    }

  @property
  def layer_random_numbers(self) -> ParameterSpecs:
    """Of the random numbers for the layers; see `draw_random_numbers`."""
    return {"masks": dict(self.masks), "uniforms": dict(self.uniforms)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSpecs:
  """The part of `Specs` that belongs to one layer; see there.

  Attributes:
    outputs: of its outputs [N, units] or [N, h, w, maps].
  """

  parameters: Mapping[str, PartitionSpec]
  statistics: Mapping[str, PartitionSpec]
  gathers: Mapping[str, tuple[tuple[str, ...], int]]
  gradient_sums: Mapping[str, tuple[str, ...]]
  outputs: PartitionSpec


def make_layer_specs(
  network: wiring.Network,
  layer: wiring.Layer,
  size: wiring.Sizes,
  route: resharding.LayerRoute,
) -> LayerSpecs:
  """Makes the specs of one layer from its size and its route."""
  placement, gathers, statistics = route.placement, {}, {}
  # After partial sums are scattered, there may be more axes than the kernel's.
  outputs = route.output_sharding.features
  kernel = [placement.inputs, placement.outputs]
  if fsdp := placement.fsdp:
    dimension = layout_lib.fsdp_dimension(layer, network)
    kernel[dimension] = (*kernel[dimension], *fsdp)
    gathers["kernel"] = fsdp, dimension
  unsplit = [None] * (len(size.kernel) - len(kernel))
  parameters = {"kernel": _spec(*unsplit, *kernel), "bias": _spec(outputs)}
  gradient_sums = {
    "kernel": _without(
      route.input_sharding.varying,
      placement.inputs + placement.outputs + placement.fsdp,
    ),
    "bias": _without(route.output_sharding.varying, outputs),
  }
  if layer.normalize == "batch":
    parameters["scale"] = _spec(outputs)
    gradient_sums |= {
      "bias": (),
      "scale": (),
      "statistics": gradient_sums["bias"],
    }
    statistics = {"mean": _spec(outputs), "variance": _spec(outputs)}
  window = [None, None] if layer.window else []
  return LayerSpecs(
    parameters=parameters,
    statistics=statistics,
    gathers=gathers,
    gradient_sums=gradient_sums,
    outputs=_spec(route.output_sharding.batch, *window, outputs),
  )


def make_specs(
  network: wiring.Network,
  routes: Mapping[str, resharding.LayerRoute],
) -> Specs:
  """Makes the specs of a network on a layout, from its routes."""
  sizes = network.sizes()
  specs = {
    layer.name: make_layer_specs(
      network, layer, sizes[layer.name], routes[layer.name]
    )
    for layer in network.layers
  }
  first, last = network.layers[0].name, network.layers[-1].name
  return Specs(
    parameters={name: dict(each.parameters) for name, each in specs.items()},
    statistics={
      name: dict(each.statistics)
      for name, each in specs.items()
      if each.statistics
    },
    gathers={
      (name, tensor): gathered
      for name, each in specs.items()
      for tensor, gathered in each.gathers.items()
    },
    gradient_sums={name: each.gradient_sums for name, each in specs.items()},
    images=_spec(routes[first].input_sharding.batch),
    labels=_spec(routes[last].output_sharding.batch),
    predicted=_spec(
      routes[resharding.LOSS].output_sharding.copies,
      routes[resharding.LOSS].output_sharding.batch,
    ),
    masks={
      layer.name: specs[layer.name].outputs
      for layer in network.layers
      if layer.dropout
    },
    uniforms={
      layer.name: specs[layer.name].outputs
      for layer in network.layers
      if layer.pool and layer.pool.kind == "stochastic"
    },
    activations={
      name: PartitionSpec(
        routes[name].output_sharding.copies or None, *each.outputs
      )
      for name, each in specs.items()
    },
    kernel_axes=tuple(
      dict.fromkeys(
        axis
        for name in network.trained
        for axis in spec_axes(specs[name].parameters["kernel"])
      )
    ),
  )


def _spec(*axes: tuple[str, ...] | None) -> PartitionSpec:
  return PartitionSpec(*(names or None for names in axes))


def _without(
  axes: tuple[str, ...], removed: tuple[str, ...]
) -> tuple[str, ...]:
  return tuple(axis for axis in axes if axis not in removed)


def spec_axes(spec: PartitionSpec) -> tuple[str, ...]:
  """Returns the axes that split an array of that spec."""
  return tuple(
    axis
    for names in spec
    for axis in ((names,) if isinstance(names, str) else names or ())
  )


def shard_shape(
  shape: tuple[int, ...],
  spec: PartitionSpec,
  layout: layout_lib.Layout,
) -> tuple[int, ...]:
  """Returns the shape of one device's shard of an array of a global shape."""
  axes = [*spec, *[None] * (len(shape) - len(spec))]
  return tuple(
    size // layout.size((names,) if isinstance(names, str) else names or ())
    for size, names in zip(shape, axes, strict=True)
  )


def to_shardings(mesh: jax.sharding.Mesh, specs):
  """Replaces each PartitionSpec of a pytree by a sharding on `mesh`."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
  )


def with_shardings(mesh: jax.sharding.Mesh, abstract):
  """Puts a result of `jax.eval_shape` onto the mesh that it ran under."""

  def place(leaf):
    spec = leaf.sharding.spec if leaf.sharding else PartitionSpec()
    return leaf.update(sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, abstract)


def draw_random_numbers(
  network: wiring.Network,
  specs: Specs,
  augmentation,
  key: jax.Array,
  step: jax.Array,
  n: int,
) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
  """Draws the random numbers of a step; to be called under the layout's mesh.

  Args:
    augmentation: of the images; see `data/augment.py`.
    key: the same for all steps.
    step: i32[], steps before this one.
    n: images in the batch, over all devices.

  Returns:
    The random numbers of the augmentation, and those of the layers: {"masks":
    {layer: bool[N, ...]}, "uniforms": {layer: f32[N, ...]}}, the values that
    dropout keeps and the numbers that stochastic pooling picks with. They are
    drawn in float32, so that a program in float64 has the same.
  """
  num_layers = len(specs.masks) + len(specs.uniforms)
  augment_key, *keys = jax.random.split(
    jax.random.fold_in(key, step), 1 + num_layers
  )
  for_images = augmentation.draw(augment_key, n, spec=specs.images, step=step)
  shapes = {
    name: (n, *size.out_shape) for name, size in network.sizes().items()
  }
  masks, uniforms = {}, {}
  for layer, layer_key in zip(specs.masks, keys, strict=False):
    masks[layer] = jax.random.bernoulli(
      layer_key,
      np.float32(network.keep_rate(layer)),
      shapes[layer],
      out_sharding=specs.masks[layer],
    )
  for layer, layer_key in zip(specs.uniforms, keys[len(masks) :], strict=True):
    uniforms[layer] = jax.random.uniform(
      layer_key, shapes[layer], np.float32, out_sharding=specs.uniforms[layer]
    ).astype(float)
  return for_images, {"masks": masks, "uniforms": uniforms}

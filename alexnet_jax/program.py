"""A training step on a mesh: its parts, how it is compiled, and its audit.

From a network and a layout to a compiled step whose communication has been
held against the plan. Needs no data and no directory, so everything that looks
at a step before it runs starts here. The only place that enters the mesh.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import optax

from alexnet_jax import metrics
from alexnet_jax import step as step_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import route, specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What a layout makes of a network, on a mesh of devices."""

  network: wiring.Network
  layout: layout_lib.Layout
  batch_size: int
  mesh: jax.sharding.Mesh
  specs: specs.Specs
  exchange: exchange_lib.MeshExchange
  plan: tuple[plan_lib.Exchange, ...]
  augmentation: step_lib.Augmentation
  optimizer: optax.GradientTransformation

  def init(self, key: jax.Array) -> step_lib.TrainState:
    """The state before the first step."""
    with jax.set_mesh(self.mesh):
      return jax.jit(self._init)(key)

  @functools.cached_property
  def abstract_state(self) -> step_lib.TrainState:
    """The state's shapes, types and shardings."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(self.mesh):
      state = jax.eval_shape(self._init, key)
    return specs.with_shardings(self.mesh, state)

  @functools.cached_property
  def batch_shardings(self) -> tuple:
    """Of the images and of the labels that a step takes."""
    return specs.to_shardings(self.mesh, (self.specs.images, self.specs.labels))

  def trace(self) -> jax.stages.Traced:
    """The training step as JAX sees it: (state, key, images, labels)."""
    side = self.augmentation.stored_size
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = key.update(sharding=specs.to_shardings(self.mesh, self.specs.whole))
    batch = [
      jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=split)
      for shape, dtype, split in zip(
        ((side, side, 3), ()),
        (np.uint8, np.int32),
        self.batch_shardings,
        strict=True,
      )
    ]
    train_step = step_lib.make_train_step(
      self.network,
      self.specs,
      self.exchange,
      self.augmentation,
      self.optimizer,
    )
    with jax.set_mesh(self.mesh):
      return train_step.trace(self.abstract_state, key, *batch)

  def evaluate(self, parameters, images, labels) -> jax.Array:
    """`metrics.NAMES` summed over a batch, on centre crops: f32[4]."""
    with jax.set_mesh(self.mesh):
      return self._eval_step(parameters, images, labels)

  @functools.cached_property
  def _eval_step(self) -> step_lib.EvalStep:
    return step_lib.make_eval_step(
      self.network, self.specs, self.exchange, self.augmentation
    )

  def _init(self, key: jax.Array) -> step_lib.TrainState:
    return step_lib.init_state(self.network, self.specs, self.optimizer, key)


def make_program(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  augmentation: step_lib.Augmentation,
  optimizer: optax.GradientTransformation,
  precision: str = "float32",
) -> Program:
  """Makes the program of a network on a layout.

  Args:
    network: the network.
    layout: a layout that `Layout.check` has accepted for it.
    batch_size: images in a step, over all devices.
    mesh: from `mesh.make_mesh`.
    augmentation: see `data/augment.py`.
    optimizer: see `optimizer.py`.
    precision: of activations while they cross devices.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  routes = route.find_routes(network, layout, batch_size=batch_size)
  array_specs = specs.make_specs(network, layout, routes)
  return Program(
    network=network,
    layout=layout,
    batch_size=batch_size,
    mesh=mesh,
    specs=array_specs,
    exchange=exchange_lib.MeshExchange(
      routes, array_specs, precision=precision
    ),
    plan=plan_lib.make_plan(
      network,
      layout,
      batch_size=batch_size,
      loss_values=len(metrics.NAMES),
      precision=precision,
    ),
    augmentation=augmentation,
    optimizer=optimizer,
  )


def compile_step(
  program: Program,
) -> tuple[jax.stages.Compiled, audit_lib.Audit]:
  """Compiles the training step, and audits what came of it."""
  traced = program.trace()
  compiled = traced.lower().compile()
  audit = audit_lib.audit_step(
    program.plan,
    jaxpr=traced.jaxpr,
    hlo=compiled.as_text(),
    mesh=dict(program.mesh.shape),
  )
  return compiled, audit

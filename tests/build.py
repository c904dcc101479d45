"""Builds the parts of a run from a network and a layout, for tests."""

import dataclasses

import jax
import optax

from alexnet_jax import metrics, optimizer, step
from alexnet_jax.data import augment
from alexnet_jax.network import wiring
from alexnet_jax.partition import exchange, mesh, plan, route, specs
from alexnet_jax.partition import layout as layout_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  network: wiring.Network
  layout: layout_lib.Layout
  mesh: jax.sharding.Mesh
  specs: specs.Specs
  exchange: exchange.MeshExchange
  plan: tuple[plan.Exchange, ...]
  augmentation: augment.Augment
  optimizer: optax.GradientTransformation

  def train_step(self):
    return step.make_train_step(
      self.network,
      self.specs,
      self.exchange,
      self.augmentation,
      self.optimizer,
    )

  def eval_step(self):
    return step.make_eval_step(
      self.network, self.specs, self.exchange, self.augmentation
    )

  def init(self, key):
    """The first state; under `jax.set_mesh`."""
    return jax.jit(self._init)(key)

  def abstract_state(self):
    """The same, not computed."""
    with jax.set_mesh(self.mesh):
      state = jax.eval_shape(self._init, jax.random.key(0))
    return specs.with_shardings(self.mesh, state)

  def put(self, batch):
    splits = (self.specs.images, self.specs.labels)
    return jax.device_put(batch, specs.to_shardings(self.mesh, splits))

  def trace(self, batch):
    """The training step, traced for a batch."""
    with jax.set_mesh(self.mesh):
      return self.train_step().trace(
        self.abstract_state(), jax.random.key(1), *self.put(batch)
      )

  def _init(self, key):
    return step.init_state(self.network, self.specs, self.optimizer, key)


def make_parts(
  network, layout, augmentation, *, batch_size, learning_rate=0.01
) -> Parts:
  layout.check(network, batch_size=batch_size)
  routes = route.find_routes(network, layout, batch_size=batch_size)
  array_specs = specs.make_specs(network, routes)
  schedule, bias_schedule = (
    optimizer.make_schedule(rate, drop_steps=[3], drop_factor=0.1)
    for rate in (learning_rate, 2 * learning_rate)
  )
  return Parts(
    network=network,
    layout=layout,
    mesh=mesh.make_mesh(layout),
    specs=array_specs,
    exchange=exchange.MeshExchange(routes, array_specs),
    plan=plan.make_plan(
      network, layout, batch_size=batch_size, loss_values=len(metrics.NAMES)
    ),
    augmentation=augmentation,
    optimizer=optimizer.make_optimizer(
      schedule, bias_schedule, momentum=0.9, weight_decay=5e-4
    ),
  )

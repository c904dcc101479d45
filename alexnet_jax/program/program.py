"""A training step on a mesh, and its parts.

Needs no data and no directory, so everything that looks at a step before it
runs starts here. The only place that enters the mesh. How a step is compiled
and audited is in `compiled_step.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.partition import per_device, resharding, specs
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import eval_step, metrics, nonfinite_step
from alexnet_jax.program import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What a layout makes of a network, on a mesh of devices.

  Attributes:
    nested_axes: those of the mesh as devices are put on them, slowest first.
    views: of each image in an evaluation.
    label_smoothing: of the training loss.
    compute_dtype: type in which the network is computed.
    implementations: of each operation, see `network/implementations.py`.
    ensemble: how many members are trained at once. All else is of one member,
      but for the mesh and its axes, and arrays: what each member has for itself
      has a first dimension of members where there are several.
  """

  network: wiring.Network
  layout: layout_lib.Layout
  batch_size: int
  mesh: jax.sharding.Mesh
  nested_axes: tuple[str, ...]
  specs: specs.Specs
  exchange: exchange_lib.MeshExchange
  plan: tuple[plan_lib.Collective, ...]
  augmentation: step_lib.Augmentation
  optimizer: optax.GradientTransformationExtraArgs
  views: int = 1
  label_smoothing: float = 0.0
  compute_dtype: str = "float32"
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  )
  ensemble: ensemble_lib.Ensemble = ensemble_lib.Ensemble()

  def init(self, key: jax.Array) -> step_lib.TrainState:
    """The state before the first step."""
    with jax.set_mesh(self.mesh):
      return self._jitted_init(key)

  @functools.cached_property
  def abstract_state(self) -> step_lib.TrainState:
    """The state's shapes, types and shardings."""
    return self.ensemble.abstract(self.mesh, self.members[0]._state_of_one)

  @functools.cached_property
  def members(self) -> tuple[Program, ...]:
    """The program of each member alone, on the devices that it has here."""
    if self.ensemble.members == 1:
      return (self,)
    return tuple(
      dataclasses.replace(
        self,
        mesh=self.ensemble.narrow(self.mesh, member),
        nested_axes=self.nested_axes[1:],
        ensemble=ensemble_lib.Ensemble(),
      )
      for member in range(self.ensemble.members)
    )

  @functools.cached_property
  def _state_of_one(self) -> step_lib.TrainState:
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(self.mesh):
      state = jax.eval_shape(self._init, key)
    return specs.with_shardings(self.mesh, state)

  @functools.cached_property
  def shares(self) -> dict[str, per_device.Share]:
    """What one device holds and computes of each layer."""
    return per_device.find_shares(
      self.network,
      self.layout,
      batch_size=self.batch_size,
      precision=self.compute_dtype,
    )

  @functools.cached_property
  def optimizer_bytes(self) -> dict[str, int]:
    """Of the optimizer's state for each layer, on one device."""
    held = dict.fromkeys(self.shares, 0)
    state = self.abstract_state.optimizer
    for path, leaf in jax.tree.leaves_with_path(state):
      block = leaf.sharding.shard_shape(leaf.shape)
      for key in path:
        if getattr(key, "key", None) in held:
          held[key.key] += math.prod(block) * leaf.dtype.itemsize
    return held

  @functools.cached_property
  def batch_shardings(self) -> tuple:
    """Of the images and of the labels that a step takes."""
    return specs.to_shardings(self.mesh, (self.specs.images, self.specs.labels))

  @functools.cached_property
  def _own_sharding(self) -> jax.sharding.Sharding:
    """Of what is whole on all devices of a member."""
    return specs.to_shardings(self.mesh, self.ensemble.spec(self.specs.whole))

  def make_keys(self, seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial state and of the steps, on every device.

    Those of member m of an ensemble are those of a single run with `seed` + m.
    """

    def split() -> tuple[jax.Array, jax.Array]:
      pairs = [
        jax.random.split(jax.random.key(seed + member))
        for member in range(self.ensemble.members)
      ]
      init_key, step_key = (
        self.ensemble.stack([pair[index] for pair in pairs]) for index in (0, 1)
      )
      return init_key, step_key

    # Made there: a process cannot put arrays on the devices of another.
    return jax.jit(
      split, out_shardings=(self._own_sharding, self._own_sharding)
    )()

  def trace(self) -> jax.stages.Traced:
    """The training step as JAX sees it: (state, key, images, labels)."""
    side = self.augmentation.stored_size
    keys = [jax.random.key(0)] * self.ensemble.members
    key = jax.eval_shape(lambda: self.ensemble.stack(keys))
    key = key.update(sharding=self._own_sharding)
    batch = [
      jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=split)
      for shape, dtype, split in zip(
        ((side, side, 3), ()),
        (np.uint8, np.int32),
        self.batch_shardings,
        strict=True,
      )
    ]
    train_step = self.ensemble.each(
      step_lib.make_train_step(
        self.network,
        self.specs,
        self.exchange,
        self.augmentation,
        self.optimizer,
        label_smoothing=self.label_smoothing,
        precision=self.compute_dtype,
        implementations=self.implementations,
      ),
      self.mesh,
      own=(self._state_specs, self.specs.whole),
      shared=(self.specs.images, self.specs.labels),
      result=(self._state_specs, self.specs.whole),
      donated=(0,),
    )
    with jax.set_mesh(self.mesh):
      return train_step.trace(self.abstract_state, key, *batch)

  def trace_part(
    self, function: Callable, *arguments, donated: tuple[int, ...] = ()
  ) -> jax.stages.Traced:
    """Traces a part of a step that is computed in the global view."""
    with jax.set_mesh(self.mesh):
      return jax.jit(function, donate_argnums=donated).trace(*arguments)

  def evaluate(self, variables, images, labels) -> jax.Array:
    """`metrics.NAMES` summed over a batch, of `views` each: f32[4].

    Of several members f32[members, 4].
    """
    with jax.set_mesh(self.mesh):
      return self._eval_step(variables, images, labels)

  @functools.cached_property
  def _eval_step(self) -> eval_step.EvalStep:
    return self.ensemble.each(
      eval_step.make_eval_step(
        self.network,
        self.specs,
        self.exchange,
        self.augmentation,
        views=self.views,
        precision=self.compute_dtype,
        implementations=self.implementations,
      ),
      self.mesh,
      own=(self.specs.variables,),
      shared=(self.specs.images, self.specs.labels),
      result=self.specs.whole,
    )

  def predict(self, variables, images, labels) -> tuple[jax.Array, jax.Array]:
    """What `evaluate` sums up, image by image; see `eval_step.py`."""
    with jax.set_mesh(self.mesh):
      return self._predict_step(variables, images, labels)

  @functools.cached_property
  def _predict_step(self) -> eval_step.PredictStep:
    return eval_step.make_predict_step(
      self.network,
      self.specs,
      self.exchange,
      self.augmentation,
      views=self.views,
      precision=self.compute_dtype,
      implementations=self.implementations,
    )

  def examine(self, state, key, images, labels) -> tuple:
    """A step of one member, taken again; see `examine_step.py`."""
    step = nonfinite_step.make_nonfinite_step(
      self.network,
      self.specs,
      self.exchange,
      self.augmentation,
      mesh=self.mesh,
      label_smoothing=self.label_smoothing,
      precision=self.compute_dtype,
      implementations=self.implementations,
    )
    with jax.set_mesh(self.mesh):
      return step(state, key, images, labels)

  @functools.cached_property
  def _jitted_init(self):
    return self.ensemble.each(
      jax.jit(self._init),
      self.mesh,
      own=(self.specs.whole,),
      result=self._state_specs,
    )

  @property
  def _state_specs(self) -> step_lib.TrainState:
    """The split of the state of one member."""
    state = self.members[0]._state_of_one
    return jax.tree.map(lambda leaf: leaf.sharding.spec, state)

  def _init(self, key: jax.Array) -> step_lib.TrainState:
    return step_lib.init_state(self.network, self.specs, self.optimizer, key)


def make_program(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  augmentation: step_lib.Augmentation,
  optimizer: optax.GradientTransformationExtraArgs,
  norms: bool = False,
  label_smoothing: float = 0.0,
  precision: str = "float32",
  compute_dtype: str = "float32",
  implementations: str = implementations_lib.AUTO,
  views: int = 1,
  devices: Sequence[jax.Device] | None = None,
  keep_order: bool = False,
  members: int = 1,
) -> Program:
  """Makes the program of a network on a layout.

  Args:
    network: the network.
    layout: a layout that `check.check` has accepted for it.
    batch_size: images in a step, over all devices.
    augmentation: see `data/augment.py`.
    optimizer: see `optimizer.py`.
    norms: whether the optimizer reads norms of kernels: it has a trust
      coefficient.
    label_smoothing: see `metrics.totals`; of the training only.
    precision: of activations while they cross devices.
    compute_dtype: type in which the network is computed.
    implementations: see `implementations.choose`.
    views: of each image in an evaluation, 1 or 10.
    devices: to compute on; None: those that JAX has.
    keep_order: whether to nest the axes of the mesh as the layout lists them,
      and not by what is sent along them.
    members: of an ensemble that are trained at once, each on as many devices
      as the layout has.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together,
      or the layout does not fit the devices.
  """
  routes = resharding.find_routes(network, layout, batch_size=batch_size)
  array_specs = specs.make_specs(network, layout, routes)
  plan = plan_lib.make_plan(
    network,
    layout,
    batch_size=batch_size,
    loss_values=len(metrics.NAMES),
    precision=precision,
    norms=norms,
  )
  sent = None if keep_order else plan_lib.sent_along(plan)
  ensemble = ensemble_lib.Ensemble(members)
  mesh = ensemble_lib.make_mesh(layout, ensemble, devices, sent=sent)
  platform = mesh.devices.flat[0].platform
  return Program(
    network=network,
    layout=layout,
    batch_size=batch_size,
    mesh=mesh,
    nested_axes=mesh_lib.nest_axes(ensemble.widen(layout), sent),
    specs=array_specs,
    exchange=exchange_lib.MeshExchange(
      routes, array_specs, precision=precision
    ),
    plan=plan,
    augmentation=augmentation,
    optimizer=optimizer,
    views=views,
    label_smoothing=label_smoothing,
    compute_dtype=compute_dtype,
    implementations=implementations_lib.choose(
      platform, network, implementations, precision=compute_dtype
    ),
    ensemble=ensemble,
  )

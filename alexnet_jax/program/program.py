"""A network on a layout: its steps, with the mesh they run on.

A program needs neither data nor a workdir, so everything that looks at a step
before it runs starts here. This is the only module that enters the mesh
(`jax.set_mesh`). `compiled_step.py` compiles and audits the training step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax

from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.partition import per_device, specs
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import eval_step, nonfinite_step
from alexnet_jax.program import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A network on a layout and a mesh of devices, ready to train or evaluate.

  Attributes:
    nested_axes: the axes of the mesh in the order in which devices are put on
      them, slowest first.
    routes: of each layer and of the loss, from `plan.choose_routes`.
    views: of each image in an evaluation: 1, the center crop, or the first so
      many of the augmentation.
    label_smoothing: of the training loss; see `metrics.totals`.
    exchange_dtype: type of activations while they cross devices.
    compute_dtype: see `step.ForwardPass`.
    ensemble: how many members are trained at once. All other attributes
      describe one member, except the mesh and its axes. With several members,
      each array that a member has for itself gains a first dimension.
  """

  network: wiring.Network
  layout: layout_lib.Layout
  batch_size: int
  mesh: jax.sharding.Mesh
  nested_axes: tuple[str, ...]
  routes: plan_lib.Routes
  specs: specs.Specs
  exchange: exchange_lib.MeshExchange
  plan: tuple[plan_lib.Collective, ...]
  augmentation: step_lib.Augmentation
  optimizer: optax.GradientTransformationExtraArgs
  views: int = 1
  label_smoothing: float = 0.0
  exchange_dtype: str = "float32"
  compute_dtype: str = "float32"
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  )
  ensemble: ensemble_lib.Ensemble = ensemble_lib.Ensemble()

  @functools.cached_property
  def forward(self) -> step_lib.ForwardPass:
    """The forward pass, as all steps of this program compute it."""
    return step_lib.ForwardPass(
      network=self.network,
      specs=self.specs,
      exchange=self.exchange,
      augmentation=self.augmentation,
      compute_dtype=self.compute_dtype,
      implementations=self.implementations,
    )

  @contextlib.contextmanager
  def _scope(self) -> Iterator[None]:
    """Everything is traced on the mesh, and with the types of this program."""
    is_wide = self.compute_dtype == "float64"
    with jax.enable_x64(is_wide), jax.set_mesh(self.mesh):
      yield

  def make_keys(self, seed: int) -> tuple[jax.Array, jax.Array]:
    """Makes the keys of the initial state and of the steps, on every device.

    Member m of an ensemble has the keys of a single run with `seed` + m.
    """

    def split() -> tuple[jax.Array, ...]:
      pairs = [
        jax.random.split(jax.random.key(seed + member))
        for member in range(self.ensemble.members)
      ]
      return tuple(
        self.ensemble.stack([pair[index] for pair in pairs]) for index in (0, 1)
      )

    # Under jit: a process cannot put arrays on the devices of another.
    return jax.jit(split, out_shardings=self._key_sharding)()

  def init(self, key: jax.Array) -> step_lib.TrainState:
    """Makes the state before the first step."""
    with self._scope():
      return self._jitted_init(key)

  @functools.cached_property
  def _jitted_init(self):
    return self.ensemble.map_members(
      jax.jit(self._init),
      self.mesh,
      own=(self.specs.replicated,),
      result=self._state_specs,
    )

  def _init(self, key: jax.Array) -> step_lib.TrainState:
    return step_lib.init_state(self.forward, self.optimizer, key)

  def trace(self) -> jax.stages.Traced:
    """Traces the training step: (state, key, images, labels)."""
    keys = [jax.random.key(0)] * self.ensemble.members
    key = jax.eval_shape(lambda: self.ensemble.stack(keys))
    key = key.update(sharding=self._key_sharding)
    train_step = self.ensemble.map_members(
      step_lib.make_train_step(
        self.forward, self.optimizer, label_smoothing=self.label_smoothing
      ),
      self.mesh,
      own=(self._state_specs, self.specs.replicated),
      shared=(self.specs.images, self.specs.labels),
      result=(self._state_specs, self.specs.replicated),
      donated=(0,),
    )
    with self._scope():
      return train_step.trace(self.abstract_state, key, *self.abstract_batch)

  def trace_part(
    self, function: Callable, *arguments, donated: tuple[int, ...] = ()
  ) -> jax.stages.Traced:
    """Traces a part of a step that is computed on global arrays."""
    with self._scope():
      return jax.jit(function, donate_argnums=donated).trace(*arguments)

  def replay(self, state, key, images, labels) -> tuple:
    """Replays a step of one member; see `nonfinite_step.py`."""
    nonfinite = nonfinite_step.make_nonfinite_step(
      self.forward, mesh=self.mesh, label_smoothing=self.label_smoothing
    )
    with self._scope():
      return nonfinite(state, key, images, labels)

  def evaluate(self, variables, images, labels) -> eval_step.Evaluated:
    """Evaluates a batch, with `views` of each image; see `eval_step.py`.

    With several members: f32[members, 4] and i32[members, copies, N].
    """
    with self._scope():
      return self._eval_step(variables, images, labels)

  @functools.cached_property
  def _eval_step(self) -> Callable[..., eval_step.Evaluated]:
    return self.ensemble.map_members(
      eval_step.make_eval_step(self.forward, views=self.views),
      self.mesh,
      own=(self.specs.variables,),
      shared=(self.specs.images, self.specs.labels),
      result=eval_step.to_eval_specs(self.specs),
    )

  def predict(self, variables, images, labels) -> tuple[jax.Array, jax.Array]:
    """Computes what `evaluate` sums, image by image; see `eval_step.py`."""
    with self._scope():
      return self._predict_step(variables, images, labels)

  @functools.cached_property
  def _predict_step(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return eval_step.make_predict_step(self.forward, views=self.views)

  def make_activations(
    self, layers: Sequence[str], *, pooled: bool
  ) -> Callable[[dict, jax.Array], dict[str, jax.Array]]:
    """Makes `eval_step.make_activations_step`'s function, of one member."""
    step = eval_step.make_activations_step(
      self.forward, layers=layers, pooled=pooled
    )

    def compute(variables, images) -> dict[str, jax.Array]:
      with self._scope():
        return step(variables, images)

    return compute

  @functools.cached_property
  def abstract_state(self) -> step_lib.TrainState:
    """The state's shapes, types and shardings."""
    return self.ensemble.stack_abstract(
      self.mesh, self.members[0]._member_state
    )

  @functools.cached_property
  def _member_state(self) -> step_lib.TrainState:
    key = jax.eval_shape(lambda: jax.random.key(0))
    with self._scope():
      state = jax.eval_shape(self._init, key)
    return specs.with_shardings(self.mesh, state)

  @property
  def _state_specs(self) -> step_lib.TrainState:
    """The specs of the state of one member."""
    state = self.members[0]._member_state
    return jax.tree.map(lambda leaf: leaf.sharding.spec, state)

  @functools.cached_property
  def batch_shardings(self) -> tuple:
    """The shardings of the images and of the labels that a step takes."""
    return specs.to_shardings(self.mesh, (self.specs.images, self.specs.labels))

  @property
  def abstract_batch(self) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The images and the labels that a step takes, as for `abstract_state`."""
    n, side = self.batch_size, self.augmentation.stored_size
    images, labels = self.batch_shardings
    return (
      jax.ShapeDtypeStruct((n, side, side, 3), np.uint8, sharding=images),
      jax.ShapeDtypeStruct((n,), np.int32, sharding=labels),
    )

  @functools.cached_property
  def _key_sharding(self) -> jax.sharding.Sharding:
    spec = self.ensemble.stack_spec(self.specs.replicated)
    return specs.to_shardings(self.mesh, spec)

  @functools.cached_property
  def members(self) -> tuple[Program, ...]:
    """The program of each member alone, on its own devices."""
    if self.ensemble.members == 1:
      return (self,)
    return tuple(
      dataclasses.replace(
        self,
        mesh=self.ensemble.find_member_mesh(self.mesh, member),
        nested_axes=self.nested_axes[1:],
        ensemble=ensemble_lib.Ensemble(),
      )
      for member in range(self.ensemble.members)
    )

  def select_run(
    self, index: int | None, state: step_lib.TrainState
  ) -> tuple[Program, step_lib.TrainState]:
    """Returns the program and the state of one of the runs in this program.

    With an index of None, this program has one run only.
    """
    if index is None:
      return self, state
    program = self.members[index]
    return program, ensemble_lib.take_member(state, program.abstract_state)

  @property
  def run_name(self) -> str:
    """What reports call one of several runs in this program."""
    return ensemble_lib.NAME

  def describe_runs(self, seed: int) -> list[str]:
    """Returns a line on an ensemble whose first member has `seed`, else []."""
    return self.ensemble.describe(self.layout, seed=seed)

  @functools.cached_property
  def axes_by_bytes(self) -> tuple[str, ...]:
    """The axes of the mesh, nested by the bytes sent along them."""
    layout = self.ensemble.add_axis(self.layout)
    return mesh_lib.nest_axes(layout, plan_lib.sent_along(self.plan))

  @functools.cached_property
  def device_loads(self) -> dict[str, per_device.DeviceLoad]:
    """What one device holds and computes of each layer."""
    return per_device.find_loads(
      self.network,
      self.layout,
      batch_size=self.batch_size,
      compute_dtype=self.compute_dtype,
      exchange_dtype=self.exchange_dtype,
    )

  @functools.cached_property
  def arrivals(self) -> dict[str, tuple[str, ...]]:
    """What each layer, and the loss, receives from other devices, in words."""
    return per_device.describe_arrivals(self.network, self.layout, self.routes)

  @functools.cached_property
  def optimizer_bytes(self) -> dict[str, int]:
    """Bytes of the optimizer's state for each layer, on one device."""
    held = dict.fromkeys(self.device_loads, 0)
    state = self.abstract_state.optimizer
    for path, leaf in jax.tree.leaves_with_path(state):
      for key in path:
        if getattr(key, "key", None) in held:
          held[key.key] += count_shard_bytes(leaf)
    return held


def count_shard_bytes(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
  """Counts the bytes of an array on one device."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def make_program(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  augmentation: step_lib.Augmentation,
  optimizer: optax.GradientTransformationExtraArgs,
  norms: bool = False,
  label_smoothing: float = 0.0,
  exchange_dtype: str = "float32",
  compute_dtype: str = "float32",
  implementations: str = implementations_lib.AUTO,
  views: int = 1,
  devices: Sequence[jax.Device] | None = None,
  keep_order: bool = False,
  members: int = 1,
) -> Program:
  """Makes the program of a network on a layout.

  Args:
    network, layout: accepted together by `check.check`.
    batch_size: images in a step, over all devices.
    norms: whether the optimizer reads norms of kernels, as it does with a
      trust coefficient.
    exchange_dtype: type of activations while they cross devices; float64 if
      they are computed in float64.
    implementations: see `implementations.choose`.
    devices: to compute on; None: all that JAX has.
    keep_order: nest the axes of the mesh as the layout lists them, instead of
      by the bytes that are sent along them.
    members: members of an ensemble to train at once, each on as many devices
      as the layout has.

  Raises:
    ValueError: two layers list their axes in contradictory orders, or the
      layout does not fit the devices.
  """
  if compute_dtype == "float64":
    exchange_dtype = compute_dtype
  routes = plan_lib.choose_routes(
    network, layout, batch_size=batch_size, exchange_dtype=exchange_dtype
  )
  array_specs = specs.make_specs(network, routes)
  plan = plan_lib.make_plan(
    network,
    layout,
    batch_size=batch_size,
    exchange_dtype=exchange_dtype,
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
    nested_axes=mesh_lib.nest_axes(ensemble.add_axis(layout), sent),
    routes=routes,
    specs=array_specs,
    exchange=exchange_lib.MeshExchange(
      routes,
      array_specs,
      exchange_dtype=exchange_dtype,
      kernels_in_rows=platform == "cpu",
    ),
    plan=plan,
    augmentation=augmentation,
    optimizer=optimizer,
    views=views,
    label_smoothing=label_smoothing,
    exchange_dtype=exchange_dtype,
    compute_dtype=compute_dtype,
    implementations=implementations_lib.choose(
      platform, network, implementations, compute_dtype=compute_dtype
    ),
    ensemble=ensemble,
  )

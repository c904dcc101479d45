"""A training step once more, up to its loss: where values are not finite."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import recording
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import step as step_lib

NonfiniteStep = Callable[..., tuple[jax.Array, dict, dict]]


def make_nonfinite_step(
  network: wiring.Network,
  specs: specs_lib.Specs,
  exchange: exchange_lib.MeshExchange,
  augmentation: step_lib.Augmentation,
  *,
  mesh: jax.sharding.Mesh,
  label_smoothing: float,
  precision: str,
  implementations: implementations_lib.Implementations,
) -> NonfiniteStep:
  """Makes the examination; it is to be traced under the layout's mesh.

  Args:
    mesh: of the layout. The others: as of `step.make_train_step`.

  Returns:
    (state, key, images, labels) -> (totals, outputs, variables), jitted. state:
    as a step whose loss was not finite has left it; key and batch: of that
    step, which is taken again with the same draws. totals: f32[4], its own.
    outputs: {"images" or layer: f32[devices, 2]}; variables: {layer: {name:
    f32[1, 2]}}, of what the step was given: `recording.note` of each. All are
    whole on every device, for any process to read.
  """

  def on_device(*arguments):
    watch = recording.RecordingExchange(exchange)
    totals, _ = step_lib.make_on_device(
      network,
      watch,
      augmentation,
      label_smoothing=label_smoothing,
      precision=precision,
      implementations=implementations,
    )(*arguments)
    return totals, watch.found

  mapped = jax.shard_map(
    on_device,
    in_specs=step_lib.to_in_specs(specs),
    out_specs=(specs.whole, recording.to_spec(mesh)),
  )

  def examine_step(state, key, images, labels):
    step = jnp.where(state.step < 0, ~state.step, state.step)
    draws = specs_lib.draw_all(
      network, specs, augmentation, key, step, labels.shape[0]
    )
    totals, outputs = mapped(
      state.parameters, state.statistics, images, labels, *draws
    )
    variables = jax.tree.map(
      lambda leaf: recording.note(leaf)[None], state.variables
    )
    return jax.tree.map(
      lambda found: jax.reshard(found, specs.whole),
      (totals, outputs, variables),
    )

  return jax.jit(examine_step)

"""Replays a training step up to its loss, and notes non-finite values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from alexnet_jax.partition import recording
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import step as step_lib


def make_nonfinite_step(
  forward: step_lib.ForwardPass,
  *,
  mesh: jax.sharding.Mesh,
  label_smoothing: float,
) -> Callable[..., tuple[jax.Array, dict, dict]]:
  """Makes the replay of a training step; trace it under the layout's mesh.

  Returns:
    (state, key, images, labels) -> (totals, outputs, variables), jitted. state:
    as a step whose loss was not finite has returned it; key and batch: of that
    step. The same random numbers are drawn again. totals: f32[4]. outputs:
    {"images" or layer: f32[devices, 2]}; variables: {layer: {name: f32[1, 2]}},
    before the step; both by `recording.summarize`. All are replicated, so that
    every process can read them.
  """
  specs = forward.specs

  def on_device(*arguments):
    exchange = recording.RecordingExchange(forward.exchange)
    totals, _ = step_lib.make_on_device(
      dataclasses.replace(forward, exchange=exchange),
      label_smoothing=label_smoothing,
    )(*arguments)
    return totals, exchange.summaries

  mapped = jax.shard_map(
    on_device,
    in_specs=step_lib.to_in_specs(specs),
    out_specs=(specs.replicated, recording.summary_spec(mesh)),
  )

  def nonfinite_step(state, key, images, labels):
    draws = specs_lib.draw_random_numbers(
      forward.network,
      specs,
      forward.augmentation,
      key,
      state.step,
      labels.shape[0],
    )
    totals, outputs = mapped(
      state.parameters, state.statistics, images, labels, *draws
    )
    variables = jax.tree.map(
      lambda leaf: recording.summarize(leaf)[None], state.variables
    )
    return jax.tree.map(
      lambda x: jax.reshard(x, specs.replicated), (totals, outputs, variables)
    )

  return jax.jit(nonfinite_step)

"""Makes what a step computes, for predictions, from a config.

A module of its own: `planner` imports parts of SciPy, which take a part of a
second, and no run needs them.
"""

from __future__ import annotations

import ml_collections

from alexnet_jax.network import wiring
from alexnet_jax.planner import price


def make_workload(
  config: ml_collections.ConfigDict, network: wiring.Network
) -> price.Workload:
  """Makes the workload of a config.

  Args:
    config, network: from `settings.check`.
  """
  rule = config.optimizer
  return price.Workload(
    network=network,
    batch_size=config.batch_size,
    compute_dtype=config.compute_dtype,
    exchange_dtype=config.exchange_dtype,
    norms=rule.trust_coefficient is not None,
    # The momentum; averages of the parameters; sums of gradients.
    optimizer_slots=(
      1 + (rule.ema_decay is not None) + (config.grad_accumulation_steps > 1)
    ),
    stored_size=config.data.stored_size,
  )

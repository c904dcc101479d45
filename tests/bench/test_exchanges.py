"""The step that sends nothing, and the exchanges by themselves."""

import json

import jax
import numpy as np
import pytest

from alexnet_jax.bench import exchanges, report, turns
from alexnet_jax.partition import catalog, collectives, mesh, timing
from alexnet_jax.program import step as step_lib
from tests import build


def find_exchanges(program, traced):
  names = [*program.network.sizes(), "loss", "update"]
  sizes = dict(program.mesh.shape)
  return list(collectives.read_traced(traced.jaxpr, names, sizes).collectives)


@build.on_presets
def test_silent_step_sends_nothing_and_computes_the_same_shapes(layout):
  program = build.make_program(layout)
  silent = exchanges.make_silent(program)
  traced, expected = silent.trace(), program.trace()
  assert find_exchanges(silent, traced) == []
  assert len(find_exchanges(program, expected)) == len(program.plan)
  found_text, expected_text = str(traced.jaxpr), str(expected.jaxpr)
  for product in ("conv_general_dilated[", "dot_general["):
    assert found_text.count(product) == expected_text.count(product)
  for found, leaf in zip(
    *map(jax.tree.leaves, (traced.out_info, expected.out_info)), strict=True
  ):
    assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
    assert found.sharding == leaf.sharding


@pytest.mark.parametrize("normalization", ["batch", "across"])
def test_silent_step_keeps_statistics_edges_and_norms_to_itself(normalization):
  program = build.make_program(
    catalog.find("two_column_sharded"),
    build.make_network(normalization=normalization),
    trust_coefficient=0.001,
  )
  tensors = {exchange.tensor for exchange in program.plan}
  sent = {"batch": "statistics", "across": "edges"}[normalization]
  assert {"norm", sent} <= tensors
  assert find_exchanges(program, program.trace())
  silent = exchanges.make_silent(program)
  assert find_exchanges(silent, silent.trace()) == []


@pytest.mark.slow
def test_compiled_silent_step_takes_steps_and_has_no_collective():
  program = exchanges.make_silent(build.make_short_program("two_column_data"))
  compiled = program.trace().lower().compile()
  text, sizes = compiled.as_text(), dict(program.mesh.shape)
  assert not collectives.read_compiled(text, ["conv1"], sizes).collectives
  state, totals = turns.StepRunner(program, compiled).start()
  assert isinstance(state, step_lib.TrainState) and int(state.step) == 1
  # Each device counts its own half of the images.
  assert totals[3] == program.batch_size / 2


@pytest.mark.parametrize(
  "kind, of_group, value",
  [
    ("all_gather", 16, 1),
    ("all_to_all", 16 // 4, 1),
    ("reduce_scatter", 16 // 4, 4),
    ("sum", 16, 4),
  ],
)
def test_collective_alone_is_what_it_is_called(kind, of_group, value):
  made = mesh.make_mesh(catalog.find("two_column_data"))  # 2 x 2
  result = timing.make_collective(made, kind, ("data", "column"), 16)()
  assert result.sharding.shard_shape(result.shape) == (of_group,)
  np.testing.assert_array_equal(result, value)


@pytest.mark.slow
def test_every_exchange_of_the_plan_is_measured():
  program = build.make_short_program("two_column")
  times = exchanges.measure(program, rounds=2, options={})
  assert tuple(each.collective for each in times.exchanges) == program.plan
  alone = [each.seconds for each in times.exchanges]
  for seconds in (*alone, times.step_seconds, times.silent_seconds):
    assert len(seconds) == 2 and min(seconds) > 0
  data = json.loads(json.dumps(report.to_data(times)))
  for row, planned in zip(data["exchanges"], program.plan, strict=True):
    assert row["collective"]["layer"] == planned.layer
    assert row["collective"]["sent_bytes"] == planned.sent_bytes
  steps, exchange_table = times.tables()
  assert exchange_table.row_count == len(program.plan) + 1  # and the sum
  assert steps.row_count == 3


def test_exposed_time_is_the_median_of_pairs(program_facts):
  times = exchanges.ExchangeTimes(
    **program_facts,
    step_seconds=[5.0, 3.0, 9.0],
    silent_seconds=[4.0, 2.5, 1.0],
    exchanges=tuple(
      exchanges.CollectiveTime(collective=None, seconds=seconds)
      for seconds in ([0.5, 1.5], [3.0])
    ),
  )
  assert times.exposed_seconds == 1.0  # of 1, 0.5, 8
  assert times.alone_seconds == 4.0


def test_layout_that_exchanges_nothing_is_refused():
  program = build.make_short_program("one_device")
  with pytest.raises(ValueError, match="'one_device' has 1 device and exchang"):
    exchanges.measure(program, rounds=1, options={})

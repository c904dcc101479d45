"""The step that sends nothing, and the exchanges by themselves."""

import json

import jax
import numpy as np
import pytest

from alexnet_jax.bench import exchanges, step
from alexnet_jax.partition import catalog, collectives, mesh, timing
from alexnet_jax.program import step as step_lib
from tests import build, small_step


def found_in(program, traced):
  names = [*program.network.sizes(), "loss", "update"]
  return list(
    collectives.find_traced(traced.jaxpr, names, dict(program.mesh.shape))
  )


def products(traced):
  text = str(traced.jaxpr)
  return [
    text.count(f"{name}[") for name in ("conv_general_dilated", "dot_general")
  ]


def shapes(traced):
  return [
    (leaf.shape, leaf.dtype, leaf.sharding)
    for leaf in jax.tree.leaves(traced.out_info)
  ]


def test_silent_step_sends_nothing_and_computes_the_same_shapes(
  layout, tiny_network, tiny_augmentation
):
  program = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=8
  )
  silent = exchanges.silence(program)
  traced, expected = silent.trace(), program.trace()
  assert found_in(silent, traced) == []
  assert len(found_in(program, expected)) == len(program.plan)
  assert products(traced) == products(expected)
  assert shapes(traced) == shapes(expected)


@pytest.mark.parametrize("wiring", ["batch", "across"])
def test_silent_step_keeps_statistics_edges_and_norms_to_itself(
  wiring, tiny_augmentation
):
  network = small_step.wiring.make_network(
    small_step.wirings.ALEXNET_2012,
    width=1 / 8,
    image_size=67,
    num_classes=10,
    normalization=wiring,
  )
  program = build.make_program(
    network,
    catalog.find("two_column_sharded"),
    tiny_augmentation,
    batch_size=8,
    trust_coefficient=0.001,
  )
  tensors = {exchange.tensor for exchange in program.plan}
  assert {"norm", {"batch": "statistics", "across": "edges"}[wiring]} <= tensors
  assert found_in(program, program.trace())
  silent = exchanges.silence(program)
  assert found_in(silent, silent.trace()) == []


@pytest.mark.slow
def test_compiled_silent_step_takes_steps_and_has_no_collective():
  program = exchanges.silence(small_step.make_program("two_column_data"))
  compiled = program.trace().lower().compile()
  sizes = dict(program.mesh.shape)
  assert not list(
    collectives.find_compiled(compiled.as_text(), ["conv1"], sizes)
  )
  state, totals = step.Steps(program, compiled).start()
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
  block = result.sharding.shard_shape(result.shape)
  assert block == (of_group,)
  np.testing.assert_array_equal(result, value)


@pytest.mark.slow
def test_every_exchange_of_the_plan_is_measured():
  program = small_step.make_program("two_column")
  speed = exchanges.measure(program, rounds=2, options={})
  assert speed.plan == program.plan and len(speed.alone) == len(program.plan)
  for seconds in (*speed.alone, speed.step, speed.silent):
    assert len(seconds) == 2 and min(seconds) > 0
  data = json.loads(json.dumps(exchanges.show(speed).data))
  assert [row["layer"] for row in data["exchanges"]] == [
    exchange.layer for exchange in program.plan
  ]
  table = exchanges.show(speed).tables[1]
  assert table.row_count == len(program.plan) + 1  # and the sum
  assert exchanges.show(speed).tables[0].row_count == 3


def test_exposed_time_is_the_median_of_pairs():
  speed = exchanges.Speed(
    step=[5.0, 3.0, 9.0],
    silent=[4.0, 2.5, 1.0],
    alone=([0.5, 1.5], [3.0]),
    plan=(),
    batch_size=1,
    devices=2,
    platform="gpu",
  )
  assert speed.exposed() == 1.0  # of 1, 0.5, 8
  assert speed.all_alone() == 4.0


def test_layout_that_exchanges_nothing_is_refused():
  with pytest.raises(ValueError, match="'one_device' has 1 device, which"):
    program = small_step.make_program("one_device")
    exchanges.measure(program, rounds=1, options={})

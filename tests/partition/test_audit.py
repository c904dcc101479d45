"""What the audit says of what a compiler did with a plan."""

import dataclasses

from alexnet_jax.partition import audit, plan


def sums(*layers_and_elements):
  return [
    plan.Collective(
      layer=layer,
      direction="backward",
      tensor="kernel",
      kind="sum",
      axes=("data",),
      devices=2,
      elements=elements,
    )
    for layer, elements in layers_and_elements
  ]


def test_combined_sums_are_explained_by_their_total_and_no_more():
  planned = sums(("fc6", 60), ("fc7", 40))
  _, unplanned, notes = audit._explain(planned, sums(("fc6", 100)))
  assert unplanned == []
  assert notes == [
    "fc6, fc7: the compiler combined 2 of kind sum over data into 1, "
    "100 elements as planned"
  ]
  _, unplanned, _ = audit._explain(planned, sums(("fc6", 101)))
  assert unplanned == [
    "fc6 backward: sum of the kernel over data, 101 elements"
  ]


def test_reduce_scatter_turned_into_a_sum_is_explained():
  planned = [
    dataclasses.replace(exchange, kind="reduce_scatter")
    for exchange in sums(("conv3", 64))
  ]
  _, unplanned, notes = audit._explain(planned, sums(("conv3", 64)))
  assert unplanned == []
  assert "made it a sum (128 bytes planned, 256 sent)" in notes[0]


def test_gather_turned_into_a_permutation_is_explained():
  planned = [
    dataclasses.replace(exchange, kind="all_gather")
    for exchange in sums(("conv3", 64))
  ]
  permuted = [
    dataclasses.replace(exchange, kind="collective-permute", elements=32)
    for exchange in planned
  ]
  _, unplanned, notes = audit._explain(planned, permuted)
  assert unplanned == []
  assert "made it a collective-permute (128 bytes planned, 128" in notes[0]


def test_piece_of_a_combined_sum_is_found_by_its_size():
  planned = [
    dataclasses.replace(exchange, kind="reduce_scatter")
    for exchange in sums(("conv1", 64), ("conv2", 96))
  ]
  combined = sums(("conv1", 96), ("conv1", 64))
  sent, unplanned, notes = audit._explain(planned, combined)
  assert unplanned == [] and len(notes) == 2
  assert "made it a sum, as part of one in conv1 (" in notes[-1]
  assert sent == [2 * 64 // 2 * 4, 2 * 96 // 2 * 4]
  sent, unplanned, _ = audit._explain(planned, sums(("conv1", 97)))
  assert len(unplanned) == 1 and sent == [0, 0]


def test_gather_elsewhere_does_not_answer_for_a_sum_of_its_size():
  planned = sums(("fc7", 64))
  gather = dataclasses.replace(
    planned[0],
    layer="conv4",
    direction="forward",
    tensor="activation",
    kind="all_gather",
  )
  _, unplanned, notes = audit._explain(planned, [gather])
  assert len(unplanned) == 1 and "conv4 forward: all_gather" in unplanned[0]
  assert "removed it" in notes[0]


def test_other_precision_is_explained_in_bytes():
  planned = sums(("fc6", 64))
  halved = [dataclasses.replace(planned[0], bytes_per_element=2)]
  sent, unplanned, notes = audit._explain(planned, halved)
  assert (sent, unplanned) == ([128], [])
  assert "sends 2 bytes an element instead of 4 (256 bytes planned" in notes[0]

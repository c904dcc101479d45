"""What the audit reports of a compiler's changes to a plan."""

import dataclasses

import pytest

from alexnet_jax.partition import audit
from tests import build


def sums(*layers_and_elements):
  return [
    build.make_collective(elements, layer=layer)
    for layer, elements in layers_and_elements
  ]


def test_combined_sums_are_explained_by_their_total_and_no_more():
  planned = sums(("fc6", 60), ("fc7", 40))
  _, unplanned, notes = audit._match_compiled(planned, sums(("fc6", 100)))
  assert unplanned == []
  assert notes == [
    "fc6, fc7: the compiler combined 2 of kind sum over data into 1, "
    "100 elements as planned"
  ]
  _, unplanned, _ = audit._match_compiled(planned, sums(("fc6", 101)))
  assert unplanned == [
    "fc6 backward: sum of the kernel over data, 101 elements"
  ]


def change(collectives, **changes):
  return [dataclasses.replace(each, **changes) for each in collectives]


@pytest.mark.parametrize(
  ("planned_kind", "changes", "note"),
  [
    ("reduce_scatter", {}, "made it a sum (128 bytes planned, 256 sent)"),
    (
      "all_gather",
      {"kind": "collective-permute", "elements": 32},
      "made it a collective-permute (128 bytes planned, 128",
    ),
    (
      "sum",
      {"bytes_per_element": 2},
      "sends 2 bytes an element instead of 4 (256 bytes planned, 128",
    ),
  ],
)
def test_changed_collective_is_explained_in_bytes(planned_kind, changes, note):
  planned = change(sums(("conv3", 64)), kind=planned_kind)
  compiled = change(sums(("conv3", 64)), **changes)
  sent, unplanned, notes = audit._match_compiled(planned, compiled)
  assert unplanned == [] and sent == [compiled[0].sent_bytes]
  assert note in notes[0]


def test_piece_of_a_combined_sum_is_found_by_its_size():
  planned = change(sums(("conv1", 64), ("conv2", 96)), kind="reduce_scatter")
  combined = sums(("conv1", 96), ("conv1", 64))
  sent, unplanned, notes = audit._match_compiled(planned, combined)
  assert unplanned == [] and len(notes) == 2
  assert "made it a sum, as part of one in conv1 (" in notes[-1]
  assert sent == [2 * 64 // 2 * 4, 2 * 96 // 2 * 4]
  sent, unplanned, _ = audit._match_compiled(planned, sums(("conv1", 97)))
  assert len(unplanned) == 1 and sent == [0, 0]


def test_gather_elsewhere_does_not_answer_for_a_sum_of_its_size():
  planned = sums(("fc7", 64))
  gather = change(planned, layer="conv4", direction="forward")
  gather = change(gather, tensor="activation", kind="all_gather")
  _, unplanned, notes = audit._match_compiled(planned, gather)
  assert len(unplanned) == 1 and "conv4 forward: all_gather" in unplanned[0]
  assert "removed it" in notes[0]

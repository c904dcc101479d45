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


def test_parts_of_a_sum_are_explained_by_their_total_and_no_more():
  planned = sums(("fc6", 60), ("fc6", 40))
  found = audit._match_compiled(planned, sums(("fc6", 100)))
  assert found.unplanned == [] and found.sent == [60 * 4, 40 * 4]
  assert found.notes == [
    "fc6 backward: the compiler combined 2 of kind sum over data into 1, "
    "100 elements as planned"
  ]
  for other in (sums(("fc6", 101)), sums(("fc7", 100))):
    assert audit._match_compiled(planned, other).unplanned == other


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
    # A piece of a combined sum, whose tensor is not known.
    (
      "sum",
      {"tensor": "activation"},
      "combined it with others (256 bytes planned, 256 sent)",
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
  found = audit._match_compiled(planned, compiled)
  assert found.unplanned == [] and found.sent == [compiled[0].sent_bytes]
  assert note in found.notes[0]


def test_wider_collective_takes_no_place_of_another_kind():
  # XLA's compiler for CPUs sends bfloat16 as float32. The all-gather sends no
  # more than was planned for the all-to-all of the same layer.
  planned = [
    *change(sums(("deep", 2048)), kind="all_to_all", bytes_per_element=2),
    *change(sums(("deep", 1024)), kind="all_gather", bytes_per_element=2),
  ]
  planned = change(planned, tensor="activation", axes=("b",))
  compiled = change(planned, bytes_per_element=4)
  found = audit._match_compiled(planned, compiled)
  assert found.unplanned == []
  assert found.sent == [each.sent_bytes for each in compiled]
  assert all("sends 4 bytes an element" in note for note in found.notes)


@pytest.mark.parametrize(
  "changes",
  [
    # A gather elsewhere, and sums that have other operands.
    {
      **{"layer": "conv4", "direction": "forward", "tensor": "activation"},
      "kind": "all_gather",
    },
    {"layer": "conv4"},
    {"layer": ""},
    {"direction": "forward", "tensor": "activation"},
    {"tensor": "statistics"},
    {"tensor": "edges"},
    {"axes": ("column",)},
    # What takes its place sends more.
    {"elements": 65},
    {"bytes_per_element": 8},
    {"kind": "all_to_all", "elements": 64 * 16, "devices": 16},
  ],
)
def test_dead_sum_is_not_answered_by_another_of_its_size(changes):
  planned = sums(("fc7", 64))
  other = change(planned, **changes)
  found = audit._match_compiled(planned, other)
  assert found.unplanned == other and found.sent == [0]
  assert "removed it" in found.notes[0]

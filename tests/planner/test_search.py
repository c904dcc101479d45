"""The search against an enumeration of all layouts."""

import dataclasses
import itertools
import random

import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import check
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import price, search
from tests import build
from tests.planner import machines

DIMENSIONS = ("batch", "outputs", "inputs")


def make_network(*names):
  """A part of AlexNet on small images, with both columns."""
  rows = tuple(
    row for row in wirings.ALEXNET_2012.layers if not names or row.name in names
  )
  wiring = dataclasses.replace(wirings.ALEXNET_2012, name="part", layers=rows)
  return wiring_lib.make_network(
    wiring, width=0.25, image_size=67, num_classes=12
  )


FOUR = ("conv1", "conv4", "fc6", "fc8")


def list_placements(axes):
  """Every placement of a layer over some axes, written independently."""
  found = set()
  for order in itertools.permutations(axes):
    for taken in itertools.product((None, *DIMENSIONS), repeat=len(axes)):
      fields = {
        name: tuple(a for a, d in zip(order, taken, strict=True) if d == name)
        for name in DIMENSIONS
      }
      for count in range(len(fields["batch"]) + 1):
        for fsdp in itertools.combinations(sorted(fields["batch"]), count):
          found.add(layout_lib.Placement(**fields, fsdp=fsdp))
  return sorted(found, key=repr)


@dataclasses.dataclass(frozen=True)
class Some:
  """A kind of layouts: some placements of each layer, with any `fsdp`."""

  allowed: dict
  name: str = "some"

  def admits(self, layer, placement):
    return dataclasses.replace(placement, fsdp=()) in self.allowed[layer.name]


def enumerate_best(pricer, sizes, goals, allowed, *, overlap_gather):
  """The least of each goal over all layouts on one mesh, and their number.

  Args:
    sizes: of its axes, slowest first.
    goals: each layout is priced once for all of them.
    allowed: {layer: placements}.
    overlap_gather: of every layer.
  """
  network = pricer.workload.network
  mesh = dict(zip(search.AXES, sizes, strict=False))
  axes = [axis for axis in mesh if mesh[axis] > 1]
  choices = [
    [
      one
      for one in list_placements(axes)
      if dataclasses.replace(one, fsdp=()) in allowed[layer.name]
    ]
    for layer in network.layers
  ]
  names = [layer.name for layer in network.layers]
  best, count = [None] * len(goals), 0
  for placements in itertools.product(*choices):
    layout = layout_lib.Layout(
      name="one",
      mesh=mesh,
      layers={
        name: dataclasses.replace(placement, overlap_gather=overlap_gather)
        for name, placement in zip(names, placements, strict=True)
      },
    )
    try:
      check.check(layout, network, batch_size=pricer.workload.batch_size)
      prediction = price.predict(pricer, layout, order=tuple(mesh))
    except ValueError:
      continue
    count += 1
    for index, goal in enumerate(goals):
      if goal.admits(prediction):
        value = goal.measure(prediction)
        least = best[index]
        best[index] = value if least is None else min(least, value)
  plan_lib.choose_routes.cache_clear()
  return best, count


def compare_with_enumeration(
  network, devices, machine, *, draw=None, norms=False, memory=False, kind=None
):
  """Asserts that both find the same on every mesh; returns layouts tried.

  Args:
    draw: placements of each layer to look at, drawn; None: all.
    memory: whether to look for the fastest within a limit of memory, too.
    kind: of layouts, instead of those that are drawn.
  """
  workload = price.Workload(
    network=network, batch_size=8, norms=norms, stored_size=77
  )
  pricer = price.Pricer(machine, workload)
  rng = random.Random(f"{devices} {draw} {norms}")
  tried = limited = 0
  for sizes in search.find_meshes(machine.links, devices):
    plain = [
      one for one in list_placements(search.AXES[: len(sizes)]) if not one.fsdp
    ]
    # Doing the same everywhere fits anything, so there is always a layout.
    same = layout_lib.Placement()
    allowed = {
      layer.name: [
        one for one in plain if kind is None or kind.admits(layer, one)
      ]
      if draw is None
      else [same, *rng.sample(plain, min(draw - 1, len(plain)))]
      for layer in network.layers
    }
    mesh = search._Mesh(workload, sizes)

    def find(goal, mesh=mesh, allowed=allowed):
      one = search._Search(pricer, mesh, goal, kind or Some(allowed))
      return one.find_fastest(float("inf"))

    goals = [search.Goal(least="time"), search.Goal(least="memory")]
    if memory:
      # Between what the fastest needs and the least that any needs.
      fastest, smallest = (find(goal).prediction.memory_bytes for goal in goals)
      goals.append(search.Goal(memory_bytes=(fastest + smallest) / 2))
      limited += smallest < fastest
    for overlaps, of_pass in (
      *((False, goals), (True, [search.Goal(least="overlapped")])),
    ):
      expected, count = enumerate_best(
        pricer, sizes, of_pass, allowed, overlap_gather=overlaps
      )
      tried += count * len(of_pass)
      for goal, best in zip(of_pass, expected, strict=True):
        found = find(goal).prediction
        assert goal.measure(found) == pytest.approx(best, rel=1e-9)
  assert limited or not memory, (
    "the fastest needs the least memory on every mesh"
  )
  return tried


@pytest.mark.parametrize("machine", [machines.FLAT, machines.TWO_HOSTS])
def test_search_of_four_layers_on_two_devices_is_exact(machine):
  tried = compare_with_enumeration(make_network(*FOUR), 2, machine, memory=True)
  assert tried > 600


@pytest.mark.parametrize(
  "frozen", [("conv4",), *build.slow((), ("conv1",), ("conv4", "fc6"))]
)
def test_search_with_norms_and_frozen_layers_is_exact(frozen):
  network = dataclasses.replace(make_network(*FOUR), frozen=frozen)
  tried = compare_with_enumeration(
    network, 2, machines.TWO_HOSTS, norms=True, memory="conv1" in frozen
  )
  assert tried > 600


@pytest.mark.parametrize("kind", search.KINDS, ids=lambda one: one.name)
def test_search_of_a_kind_is_exact(kind):
  tried = compare_with_enumeration(
    make_network(*FOUR), 2, machines.FLAT, kind=kind
  )
  assert tried > 10


def test_search_of_drawn_placements_on_four_devices_is_exact():
  tried = compare_with_enumeration(
    make_network(*FOUR), 4, machines.TWO_HOSTS, draw=4
  )
  assert tried > 50


@pytest.mark.slow
@pytest.mark.parametrize("machine", [machines.FLAT, machines.TWO_HOSTS])
def test_search_of_four_layers_on_four_devices_is_exact(machine):
  tried = compare_with_enumeration(
    make_network(*FOUR), 4, machine, draw=7, memory=True
  )
  assert tried > 1000


@pytest.mark.slow
def test_search_of_eight_layers_is_exact():
  for devices, machine, draw in (
    (2, machines.FLAT, 3),
    (4, machines.TWO_HOSTS, 2),
  ):
    tried = compare_with_enumeration(
      make_network(), devices, machine, draw=draw, memory=True
    )
    assert tried > 1000

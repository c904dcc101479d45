"""Prices against sums that are written out here."""

import dataclasses
import re

import pytest

from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from tests import build, processes
from tests.planner import machines

LAYOUT = layout_lib.Layout(name="one", mesh={"x": 2, "y": 2})
SECONDS = machines.FLAT.launch_seconds


def make_pricer(machine, **fields):
  workload = price.Workload(network=build.FULL_NETWORK, batch_size=64, **fields)
  return price.Pricer(machine, workload)


def price_one(
  machine,
  kind,
  axes,
  *,
  elements=2**20,
  strided=False,
  layer="fc6",
  tensor="activation",
):
  collective = plan_lib.Collective(
    layer=layer,
    direction="forward",
    tensor=tensor,
    kind=kind,
    axes=axes,
    devices=LAYOUT.size(axes),
    elements=elements,
    strided=strided,
  )
  nested = price.Nested(LAYOUT, ("x", "y"), machine.links)
  return make_pricer(machine).price_collective(collective, nested)


def test_ring_inside_a_host():
  # Two devices of one host: half of 4 MiB over a bus of 1 GB/s, one step.
  sent = price_one(machines.TWO_HOSTS, "all_gather", ("y",))
  assert sent.seconds == pytest.approx(2**21 / 1e9 + 1e-6 + SECONDS)
  assert sent.level == "bus"
  assert sent.bytes_by_level == {"bus": 2**21}


def test_rings_between_hosts_share_the_link():
  # Two groups with a device on each host: both cross the one link of 0.1 GB/s.
  sent = price_one(machines.TWO_HOSTS, "sum", ("x",))
  assert sent.seconds == pytest.approx(2 * 2**22 / 1e8 + 2 * 1e-5 + SECONDS)
  assert sent.bytes_by_level == {"network": 2**22}


def test_ring_over_both_levels_crosses_once():
  # One ring of four: three quarters of 4 MiB pass each link, two of four hops
  # are between hosts; three steps, of which one waits for the network.
  sent = price_one(machines.TWO_HOSTS, "reduce_scatter", ("x", "y"))
  on_wire = 3 / 4 * 2**22
  assert sent.seconds == pytest.approx(
    on_wire / 1e8 + 1e-5 + 2 * 1e-6 + SECONDS
  )
  assert sent.level == "network"
  assert sent.bytes_by_level == {
    "bus": pytest.approx(on_wire / 2),
    "network": pytest.approx(on_wire / 2),
  }


def test_all_to_all_sends_to_every_device():
  # A device sends 1/16 of 4 MiB to each other one, two of which are in the
  # other host; two devices share that link.
  sent = price_one(machines.TWO_HOSTS, "all_to_all", ("x", "y"))
  between = 2 * 2**22 / 16
  assert sent.seconds == pytest.approx(
    2 * between / 1e8 + 1e-5 + 1e-6 + SECONDS
  )
  assert sent.bytes_by_level == {"bus": 2**22 / 16, "network": between}


def test_collective_along_another_dimension_copies_its_array():
  plain = price_one(machines.FLAT, "all_gather", ("y",))
  strided = price_one(machines.FLAT, "all_gather", ("y",), strided=True)
  copied = 2 * 2**22 / machines.FLAT.memory_bytes_per_second
  assert strided.seconds - plain.seconds == pytest.approx(copied + SECONDS)


@pytest.mark.parametrize(
  "kind, copied",
  [("all_gather", 1 / 2 + 1), ("reduce_scatter", 1 + 1 / 2), ("all_to_all", 1)],
)
def test_on_cpus_it_copies_what_comes_and_what_goes(kind, copied):
  per_value = 3e-9
  measured = tuple(
    machine_lib.Measured(
      what="transpose",
      geometry="transpose",
      dtype="float32",
      work={"values": values},
      seconds={"forward": per_value * values},
    )
    for values in (2**18, 2**20)
  )
  on_gpus = dataclasses.replace(machines.FLAT, measured=measured)
  on_cpus = dataclasses.replace(on_gpus, platform="cpu")

  def price_copies(machine, **what):
    plain = price_one(machine, kind, ("y",), **what)
    strided = price_one(machine, kind, ("y",), strided=True, **what)
    return strided.seconds - plain.seconds

  values = per_value * 2**20
  for what in ({}, {"layer": "conv3", "tensor": "kernel"}):
    found = price_copies(on_cpus, **what)
    assert found == pytest.approx(copied * values, rel=0.01)
  if kind != "all_to_all":
    assert price_copies(on_gpus) == pytest.approx(values, rel=0.01)
    # Dense kernels go in rows, and the complete one is copied as it lies.
    moved = 2 * 2**22 / on_cpus.memory_bytes_per_second
    found = price_copies(on_cpus, tensor="kernel")
    assert found == pytest.approx(moved + SECONDS)


def test_measured_costs_of_collectives_take_the_place_of_latency():
  for overlapped, pace in ((1e-9, 2 / 1e9), (3e-9, 3e-9)):
    software = machine_lib.Software(
      seconds=1e-3,
      seconds_per_byte=1e-9,
      overlapped_seconds_per_byte=overlapped,
      link_times=2.0,
    )
    link = machines.make_link(software={"sum": software})
    sent = price_one(machines.make_machine(link), "sum", ("y",))
    assert sent.seconds == pytest.approx(2**22 * (1e-9 + pace) + 1e-3)


def test_compute_follows_from_flops_or_bytes():
  network = build.FULL_NETWORK
  size, layer = network.sizes()["fc7"], network.layer("fc7")
  pricer = make_pricer(machines.FLAT)
  what = {"images": 64, "inputs": 4096, "outputs": 4096}
  forward, backward = pricer.price_product(
    layer, **what, multiplications=size.multiplications
  )
  flops = 2 * 64 * 4096**2 / (1e12 * 0.8)
  assert forward == pytest.approx(flops + SECONDS)
  assert backward == pytest.approx(2 * forward)
  slow = dataclasses.replace(machines.FLAT, memory_bytes_per_second=1e9)
  forward, _ = make_pricer(slow).price_product(
    layer, **what, multiplications=size.multiplications
  )
  moved = 4 * (4096**2 + 2 * 64 * 4096) / 1e9
  assert forward == pytest.approx(moved + SECONDS)


def test_parts_of_a_step_add_up():
  layout = layout_lib.Layout(
    name="mixed",
    mesh={"x": 2, "y": 2},
    conv=layout_lib.Placement(batch=("x", "y"), fsdp=("y",)),
    fc=layout_lib.Placement(features=("x", "y"), overlap_gather=True),
  )
  found = price.predict(make_pricer(machines.TWO_HOSTS), layout)
  assert found.seconds == pytest.approx(
    found.augmentation + sum(one.seconds for one in found.layers.values())
  )
  assert found.overlapped_seconds < found.seconds
  assert found.overlapped_seconds >= max(found.compute, found.gradients)
  sent = sum(one.sent_bytes for one in found.workload.make_plan(layout))
  assert sum(found.bytes_by_level.values()) == pytest.approx(sent)
  assert found.images_per_second == pytest.approx(64 / found.seconds)
  assert found.device_hours(64 * 3600) == pytest.approx(4 * found.seconds)


def test_frozen_layers_cost_no_gradients():
  frozen = ("conv1", "conv2", "fc7")
  layout = build.with_mesh(catalog.DATA_PARALLEL, data=4)
  pricer = make_pricer(machines.FLAT)
  network = dataclasses.replace(build.FULL_NETWORK, frozen=frozen)
  workload = dataclasses.replace(pricer.workload, network=network)
  free, found = (
    price.predict(one, layout)
    for one in (pricer, price.Pricer(machines.FLAT, workload))
  )
  for name, layer in found.layers.items():
    before = free.layers[name]
    assert layer.forward == before.forward and layer.exchange == before.exchange
    if name in frozen:
      assert layer.update == layer.gradients == 0
    else:
      assert layer.gradients == before.gradients
  # Nothing of the backward pass is left below conv3, whose input has none.
  backward = {name: layer.backward for name, layer in found.layers.items()}
  assert backward["conv1"] == backward["conv2"] == 0
  assert backward["conv4"] == free.layers["conv4"].backward
  # Of the two products of fc7, as large as its forward one, that by the input.
  load = workload.find_loads(layout)["fc7"]
  product, _ = pricer.price_product(
    network.layer("fc7"),
    images=load.images,
    inputs=load.inputs,
    outputs=load.outputs,
    multiplications=load.multiplications,
  )
  assert free.layers["fc7"].backward - backward["fc7"] == pytest.approx(product)
  assert workload.find_loads(layout)["conv3"].passes == 2
  # No gradients of frozen kernels, and no activations kept below conv3.
  spared = sum(4 * network.sizes()[name].parameters for name in frozen)
  assert free.memory_bytes - found.memory_bytes > spared


def test_dtype_without_a_peak_is_refused():
  machine = dataclasses.replace(
    machines.FLAT, peak_flops_per_second={"float32": 1e12}
  )
  with pytest.raises(ValueError, match="has no .* for bfloat16.*compute_dtype"):
    make_pricer(machine, compute_dtype="bfloat16")


@pytest.mark.parametrize("layout", catalog.LAYOUTS, ids=lambda one: one.name)
def test_memory_is_about_what_the_compiler_takes(layout):
  # docs/layouts/ has what XLA's CPU compiler says, at a batch of 128.
  text = (processes.ROOT / f"docs/layouts/{layout.name}.txt").read_text()
  peak = re.search(
    r"at the peak of a step, by the compiler: ([\d,.]+) MB", text
  )
  pricer = price.Pricer(
    machines.FLAT,
    price.Workload(network=build.FULL_NETWORK, batch_size=128),
  )
  found = price.predict(pricer, layout).memory_bytes / 1e6
  # Copies of a layer's product are counted, not what else the compiler keeps.
  assert 0.88 <= found / float(peak[1].replace(",", "")) <= 1.005

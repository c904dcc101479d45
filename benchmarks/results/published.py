"""Reproduces "Beside published measurements" of docs/planner.md.

    python -m benchmarks.results.published

Prints what the planner predicts beside what was published for AlexNet, as
tables in Markdown; some minutes, most of them for the searches (`--nosearch`
leaves those out). It needs no device but the CPU.

The machines are those of the package, as they are; the sources and the speed of
one GPU that each was calibrated to stand in their files. What a source says
about its own machine and this script changes for it, stands in a function:
`to_pase_model`, `to_flexflow_links`, `to_one_level`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.network import catalog as network_catalog
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price, search

Layout, Placement = catalog.Layout, catalog.Placement

# What OptCNN and FlexFlow may split: no sums over inputs.
WITHOUT_INPUTS = search.Kind(
  name="images and outputs",
  conv=("batch", "outputs"),
  fc=("batch", "outputs"),
)

# Of rows that are priced with `to_flexflow_links`.
SLOW_LINKS = ", slow links"

# Krizhevsky 2014, "One weird trick for parallelizing convolutional neural
# networks", table 1: K20s -> hours of 90 epochs, 128 images a GPU.
TRICK_HOURS = {1: 98.05, 2: 50.24, 4: 26.20, 8: 15.68}
# Jia et al. 2018 (OptCNN): P100s -> images/s, 32 images a GPU, and GB that all
# GPUs transfer in a step. Read off figures.
OPTCNN_RATES = {
  "data parallel": {2: 1150, 4: 1700, 8: 2450, 16: 3200},
  "one weird trick": {1: 740, 2: 1350, 4: 2000, 8: 3000, 16: 4200},
  "their optimum": {1: 740, 2: 1450, 4: 2700, 8: 4900, 16: 9000},
}
OPTCNN_GB = {
  "data parallel": {2: 1.1, 4: 2.2, 8: 4.45, 16: 9.0},
  "one weird trick": {2: 0.03, 4: 0.1, 8: 0.33, 16: 1.05},
  "their optimum": {2: 0.02, 4: 0.09, 8: 0.18, 16: 0.38},
}
# Jia et al. 2019 (FlexFlow), figure 6: images/s of each of 16 P100, 256 images
# a GPU. Read off the figure.
FLEXFLOW_ONE = 2250
FLEXFLOW_RATES = {
  "data parallel": 650,
  "one weird trick": 950,
  "their optimum": 1570,
}
# Elango 2021 (PaSE): milliseconds of a step by its own model, of its optimum
# and of data parallelism. Computed with its released code (commit 32aa761c, the
# batch of 128, peak and bandwidth that are its defaults).
PASE_MS = {
  4: (14.82, 58.0),
  8: (9.71, 60.0),
  16: (7.03, 61.0),
  32: (5.31, 62.0),
  64: (4.11, 62.0),
}
PASE_DEVICES = 32  # of the optimum that was printed
# The meshes of its released benchmark, inputs by outputs of fc6.
PASE_MESHES = {4: (4, 1), 8: (4, 2), 16: (8, 2), 32: (8, 4), 64: (8, 8)}
# Figure 6: how much faster than data parallelism. Read off the figure.
PASE_RATIOS = {
  "gtx1080ti": {
    "PaSE": (1.65, 1.75, 1.85, 1.43, 1.4),
    "one weird trick": (1.52, 1.55, 1.48, 0.95, 0.84),
  },
  "rtx2080ti": {
    "PaSE": (3.55, 4.0, 4.0, 2.8, 1.75),
    "one weird trick": (2.95, 3.5, 3.4, 1.8, 0.9),
  },
}
# Its optimum for 32 devices, table II; docs/partition.md explains it.
PASE = Layout(
  name="pase",
  mesh={"x": 4, "y": 4, "half": 2},
  conv=Placement(batch=("x", "y", "half")),
  fc=Placement(outputs=("x",), inputs=("half", "y")),
  layers={
    "conv5": Placement(batch=("x", "y"), inputs=("half",)),
    "fc7": Placement(outputs=("half", "y"), inputs=("x",)),
  },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
  """Images/s of data parallelism on 1, 2, 4, ... GPUs, and their source."""

  source: str
  machine: machine_lib.Machine
  images_per_gpu: int
  rates: dict[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table in Markdown; all columns after the first are numbers."""

  title: str
  header: tuple[str, ...]
  rows: list[tuple[str, ...]]

  def to_markdown(self) -> str:
    rule = ("---", *("---:" for _ in self.header[1:]))
    lines = [f"| {' | '.join(row)} |" for row in (self.header, *self.rows)]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join((f"### {self.title}", "", *lines, ""))


@functools.cache
def make_network(name: str) -> wiring.Network:
  """Makes the network that a source trained; `merged tower`, ..."""
  if name == "merged tower":
    return wiring.make_network(network_catalog.MERGED_TOWER)
  if name == "one tower":  # with the widths of 2012: PaSE
    base = network_catalog.ALEXNET_2012
    return wiring.make_network(base, columns=1, image_size=227)
  base = network_catalog.rewire(
    network_catalog.MERGED_TOWER, "benchmarks", conv4={"features": 384}
  )
  return wiring.make_network(base, image_size=227)  # tf_cnn_benchmarks


def to_pase_model(machine: machine_lib.Machine) -> machine_lib.Machine:
  """Returns the machine of PaSE's planner: one level, nothing but two rates.

  Its defaults are 10 TFLOPS at 3 operations a multiplication, of which we count
  6, and 16 GB/s for words of 8 bytes, which have 4 here.
  """
  link = dataclasses.replace(
    machine.links[0],
    joins_devices=None,
    bytes_per_second=8e9,
    latency_seconds=0.0,
  )
  return dataclasses.replace(
    machine,
    name="PaSE's model",
    peak_flops_per_second={"float32": 20e12},
    utilization=dict.fromkeys(machine_lib.KINDS, 1.0),
    memory_bytes_per_second=1e30,
    launch_seconds=0.0,
    links=(link,),
  )


def to_flexflow_links(machine: machine_lib.Machine) -> machine_lib.Machine:
  """Returns a machine with the links of FlexFlow's own simulator.

  4.19 GB/s in a node, 1.05 GB/s between nodes (scripts/simulator.cc at commit
  01b36963).
  """
  inside, between = machine.links
  links = (
    dataclasses.replace(inside, bytes_per_second=4.19e9),
    dataclasses.replace(between, bytes_per_second=1.05e9),
  )
  return dataclasses.replace(machine, links=links)


def to_one_level(
  machine: machine_lib.Machine, bytes_per_second: float | None = None
) -> machine_lib.Machine:
  """Returns a machine whose innermost links join all of its devices."""
  link = dataclasses.replace(machine.links[0], joins_devices=None)
  if bytes_per_second:
    link = dataclasses.replace(link, bytes_per_second=bytes_per_second)
  return dataclasses.replace(machine, links=(link,))


def make_scalings() -> tuple[Scaling, ...]:
  """Makes the comparisons of data parallelism inside one host."""
  p100 = machine_lib.load("p100_4x4")
  # The same GPU at a batch of 512; see the source of the machine's number.
  p100 = dataclasses.replace(
    p100, utilization={**p100.utilization, "conv": 1.5}
  )
  return (
    Scaling(
      source="TensorFlow Benchmarks, P100",
      machine=to_one_level(p100),
      images_per_gpu=512,
      rates={1: 2987, 2: 5658, 4: 10509, 8: 17822},
    ),
    # One NVLink for each pair of GPUs, and one ring: see the same source.
    Scaling(
      source="TensorFlow Benchmarks, P100, one ring",
      machine=to_one_level(p100, 18e9),
      images_per_gpu=512,
      rates={1: 2987, 2: 5658, 4: 10509, 8: 17822},
    ),
    Scaling(
      source="Lambda, RTX 2080 Ti",
      machine=machine_lib.load("rtx2080ti"),
      images_per_gpu=512,
      rates={1: 4184, 2: 5987, 4: 10369, 8: 20046},
    ),
    Scaling(
      source="Lambda, V100",
      machine=to_one_level(machine_lib.load("dgx1_v100")),
      images_per_gpu=1536,
      rates={1: 5132, 8: 35882},
    ),
    # Without NVSwitch: PCIe 4.0 x16.
    Scaling(
      source="Lambda, A100 on PCIe",
      machine=to_one_level(machine_lib.load("dgx_a100"), 25e9),
      images_per_gpu=1792,
      rates={1: 10187, 2: 20093, 4: 38785, 8: 75860},
    ),
  )


def make_pricer(
  machine: machine_lib.Machine, network: str, batch_size: int
) -> price.Pricer:
  workload = price.Workload(
    network=make_network(network), batch_size=batch_size
  )
  return price.Pricer(machine, workload)


def predict(
  pricer: price.Pricer, base: Layout, **mesh: int
) -> price.Prediction:
  """Predicts a layout on another mesh, its axes nested as is fastest."""
  layout = dataclasses.replace(base, mesh=mesh or base.mesh)
  return min(
    (
      price.predict(pricer, layout, order=order)
      for order in itertools.permutations(layout.mesh)
    ),
    key=lambda one: one.seconds,
  )


def predict_data(pricer: price.Pricer, devices: int) -> price.Prediction:
  return predict(pricer, catalog.DATA_PARALLEL, data=devices)


def predict_trick(pricer: price.Pricer, devices: int) -> price.Prediction:
  """Predicts one weird trick with dense layers split over all devices."""
  return predict(pricer, catalog.ONE_WEIRD_TRICK, data=1, model=devices)


# Exchanges that the sources did in other ways than our steps do.


def exchange_in_turns(pricer: price.Pricer, devices: int) -> float:
  """Seconds in which one device after the other sends its images' features.

  Scheme (b) of Krizhevsky 2014, which cuda-convnet2 has: a device sends what
  fc6 reads of its images to each of the others over its own link, and gets the
  gradients of all of them back; then it is the next one's turn.
  """
  (link,) = pricer.machine.links
  size = pricer.workload.network.sizes()["fc6"]
  images = pricer.workload.batch_size / devices
  numbers = images * size.positions * size.channels
  copies = 4 * numbers * (devices - 1)
  return 2 * devices * copies / link.bytes_per_second


def serve_on_all(pricer: price.Pricer, devices: int) -> float:
  """Seconds of a parameter server whose shards are on all devices.

  Each device sends each other one the gradients of that one's shard, and gets
  its new weights back: two all-to-alls.
  """
  collective = plan_lib.Collective(
    layer=plan_lib.UPDATE,
    direction=plan_lib.BACKWARD,
    tensor="kernel",
    kind="all_to_all",
    axes=("data",),
    devices=devices,
    elements=devices * count_parameters(pricer.workload.network),
  )
  layout = Layout(name="server", mesh={"data": devices})
  nested = price.Nested(layout, ("data",), pricer.machine.links)
  return 2 * pricer.price_collective(collective, nested).seconds


def serve_on_one(pricer: price.Pricer, devices: int) -> float:
  """Seconds of a parameter server on one of the devices.

  All gradients arrive over its links, and all weights leave over them.
  """
  model = 4 * count_parameters(pricer.workload.network)
  slowest = 0.0
  for link in pricer.machine.links:
    block = min(link.joins_devices or devices, devices)
    senders = max(0, block - link.unit_devices)
    slowest = max(slowest, senders * model / link.bytes_per_second)
  return 2 * slowest


def count_parameters(network: wiring.Network) -> int:
  return sum(size.parameters for size in network.sizes().values())


def count_gb(prediction: price.Prediction) -> float:
  """GB that all devices send in a step."""
  return (
    sum(prediction.bytes_by_level.values()) * prediction.layout.devices / 1e9
  )


# The tables.


def compare_one_gpu() -> Table:
  rows = []
  cases = [
    ("One weird trick", machine_lib.load("k20"), "merged tower", 128, 326.7),
    *(
      (source, machine_lib.load(name), "merged tower", images, rate)
      for source, name, images, rate in (
        ("OptCNN", "p100_4x4_optcnn", 32, 740),
        ("FlexFlow", "p100_4x4", 256, FLEXFLOW_ONE),
      )
    ),
    *(
      (
        one.source,
        one.machine,
        "tf_cnn_benchmarks",
        one.images_per_gpu,
        one.rates[1],
      )
      for one in make_scalings()
      if not one.source.endswith("one ring")
    ),
  ]
  for source, machine, network, images, published in cases:
    predicted = predict_data(make_pricer(machine, network, images), 1)
    rate = predicted.images_per_second
    rows.append(
      (
        f"{source}, {images} images",
        _number(published),
        _number(rate),
        _deviation(rate, published),
      )
    )
  header = ("one GPU", "published images/s", "predicted", "deviation")
  return Table(title="One GPU", header=header, rows=rows)


def compare_trick() -> Table:
  machine, rows = machine_lib.load("k20"), []
  one = make_pricer(machine, "merged tower", 128)
  alone = predict_trick(one, 1).seconds
  for devices in (2, 4, 8):
    pricer = make_pricer(machine, "merged tower", 128 * devices)
    found = predict_trick(pricer, devices)
    gathers = found.layers["fc6"].exchange
    turns = exchange_in_turns(pricer, devices)
    dense = sum(found.layers[name].compute for name in ("fc6", "fc7", "fc8"))
    in_turns = found.seconds - gathers + turns
    published = TRICK_HOURS[1] / TRICK_HOURS[devices]
    ring = devices * alone / found.seconds
    slow = devices * alone / in_turns
    fast = devices * alone / (in_turns - min(turns, dense))
    rows.append(
      (
        str(devices),
        f"{published:.2f}",
        f"{ring:.2f}",
        _deviation(ring, published),
        f"{slow:.2f}",
        _deviation(slow, published),
        f"{fast:.2f}",
        _deviation(fast, published),
      )
    )
  return Table(
    title="One weird trick: speed-up on K20, 128 images a GPU",
    header=(
      *("GPUs", "published", "our exchanges", "deviation", "in turns"),
      *("deviation", "in turns, overlapped", "deviation"),
    ),
    rows=rows,
  )


def compare_optcnn(searches: bool) -> Iterator[Table]:
  given = machine_lib.load("p100_4x4_optcnn")
  machines = {"": given, SLOW_LINKS: to_flexflow_links(given)}
  pricers = {
    devices: make_pricer(given, "merged tower", 32 * devices)
    for devices in (2, 4, 8, 16)
  }
  spaces = {
    devices: search.Space(pricer.workload, devices)
    for devices, pricer in pricers.items()
  }
  # {what was measured: {row: {GPUs: number}}}
  rates = {name: {} for name in OPTCNN_RATES}
  traffic = {name: {} for name in OPTCNN_GB}

  def add(name: str, row: str, devices: int, found: price.Prediction) -> None:
    rates[name].setdefault(row, {})[devices] = found.images_per_second
    if machine is given:
      traffic[name].setdefault(row, {})[devices] = count_gb(found)

  for links, machine in machines.items():
    for devices, pricer in pricers.items():
      pricer = price.Pricer(machine, pricer.workload)
      name, images = "data parallel", 32 * devices
      found = predict_data(pricer, devices)
      add(name, f"ring{links}", devices, found)
      for row, served in (
        ("servers on all GPUs", serve_on_all(pricer, devices)),
        ("server on one GPU", serve_on_one(pricer, devices)),
      ):
        if machine is given:
          rate = images / (found.compute + served)
          rates[name].setdefault(row, {})[devices] = rate
      found = predict_trick(pricer, devices)
      add("one weird trick", f"predicted{links}", devices, found)
      for kind in (WITHOUT_INPUTS, search.ANY) if searches else ():
        found = spaces[devices].find_fastest(pricer, kind=kind)
        row = f"fastest of {kind.name}{links}"
        add("their optimum", row, devices, found.prediction)
  # Each device sends all gradients and gets all weights, its own included.
  traffic["data parallel"]["server"] = {
    devices: 8e-9 * devices * count_parameters(pricer.workload.network)
    for devices, pricer in pricers.items()
  }
  for title, published, found, form in (
    ("images/s on P100, 32 images a GPU", OPTCNN_RATES, rates, "{:,.0f}"),
    ("GB that all GPUs send in a step", OPTCNN_GB, traffic, "{:.3g}"),
  ):
    rows = []
    for name, numbers in published.items():
      shown = (form.format(numbers[devices]) for devices in pricers)
      rows.append((f"**{name}, published**", *shown))
      for row, values in found[name].items():
        cells = (
          f"{form.format(value)} ({_deviation(value, numbers[devices])})"
          for devices, value in values.items()
        )
        rows.append((row, *cells))
    header = ("GPUs", *map(str, pricers))
    yield Table(title=f"OptCNN: {title}", header=header, rows=rows)


def compare_flexflow(searches: bool) -> Iterator[Table]:
  given = machine_lib.load("p100_4x4")
  machines = {"": given, SLOW_LINKS: to_flexflow_links(given)}
  if searches:
    rows = []
    pricer = make_pricer(given, "merged tower", 64 * 4)
    space = search.Space(pricer.workload, 4)
    for links, machine in machines.items():
      pricer = price.Pricer(machine, pricer.workload)
      trick = predict_trick(pricer, 4)
      parts = _describe(trick)
      rows.append((f"one weird trick{links}", parts, _ms(trick.seconds)))
      for kind in (WITHOUT_INPUTS, search.ANY):
        found = space.find_fastest(pricer, kind=kind)
        rows.append(
          (
            f"fastest of {kind.name}{links}",
            _describe(found.prediction),
            _ms(found.prediction.seconds),
          )
        )
    yield Table(
      title="FlexFlow: the fastest layout on 4 P100, 64 images a GPU",
      header=("layout", "parts: images x outputs x inputs", "predicted ms"),
      rows=rows,
    )
  rows, batch = [], 256 * 16
  alone = predict_data(make_pricer(given, "merged tower", 256), 1)
  pricer = make_pricer(given, "merged tower", batch)
  space = search.Space(pricer.workload, 16)

  def add(what: str, name: str, seconds: float, least: float) -> None:
    published = FLEXFLOW_RATES[name] / FLEXFLOW_ONE
    ratio, most = alone.seconds / seconds, alone.seconds / least
    rows.append(
      (
        what,
        f"{published:.2f}",
        f"{ratio:.2f}",
        _deviation(ratio, published),
        f"{most:.2f}",
      )
    )

  for links, machine in machines.items():
    pricer = price.Pricer(machine, pricer.workload)
    found, served = predict_data(pricer, 16), serve_on_all(pricer, 16)
    name = "data parallel"
    add(f"{name}{links}", name, found.seconds, found.overlapped_seconds)
    add(
      f"{name}, servers on all GPUs{links}",
      name,
      found.compute + served,
      max(found.compute, served),
    )
    found, name = predict_trick(pricer, 16), "one weird trick"
    add(f"{name}{links}", name, found.seconds, found.overlapped_seconds)
    name = "their optimum"
    for kind in (WITHOUT_INPUTS, search.ANY) if searches else ():
      found = space.find_fastest(pricer, kind=kind).prediction
      what = f"fastest of {kind.name}{links}"
      add(what, name, found.seconds, found.overlapped_seconds)
  yield Table(
    title="FlexFlow: 16 P100, 256 images a GPU, each beside one alone",
    header=("layout", "published", "predicted", "deviation", "all overlaps"),
    rows=rows,
  )


def predict_pase(pricer: price.Pricer, devices: int) -> price.Prediction:
  """Predicts the layout that PaSE's authors ran."""
  inputs, outputs = PASE_MESHES[devices]
  return predict(pricer, catalog.TWO_DIMENSIONAL, data=1, x=inputs, y=outputs)


def compare_pase(searches: bool) -> Iterator[Table]:
  machine = to_pase_model(machine_lib.load("gtx1080ti"))
  rows, layouts = [], []
  pricer = make_pricer(machine, "one tower", 128)
  # Found once, whatever the machine.
  spaces = {
    devices: search.Space(pricer.workload, devices)
    for devices in PASE_MS
    if devices <= PASE_DEVICES
  }
  for devices, (theirs, data) in PASE_MS.items():
    found = predict_data(pricer, devices).seconds
    plan = predict_pase(pricer, devices).seconds
    if devices == PASE_DEVICES:
      plan = predict(pricer, PASE).seconds
    fastest = None  # in seconds where there are not more devices
    if searches and devices <= PASE_DEVICES:
      fastest = spaces[devices].find_fastest(pricer)
    rows.append(
      (
        str(devices),
        f"{data:.1f}",
        _ms(found),
        _deviation(1e3 * found, data),
        f"{theirs:.2f}",
        _ms(plan),
        _deviation(1e3 * plan, theirs),
        _ms(fastest.prediction.seconds) if fastest else "",
      )
    )
    if fastest and devices == PASE_DEVICES:
      layouts.append(("PaSE's model, fastest of all", fastest.prediction))
  yield Table(
    title="PaSE's model of 1080 Ti: ms of a step of 128 images",
    header=(
      *("devices", "data parallel, theirs", "ours", "deviation"),
      *("their optimum, theirs", "ours", "deviation", "our optimum"),
    ),
    rows=rows,
  )
  for name, published in PASE_RATIOS.items():
    machine = machine_lib.load(name)
    pricer = make_pricer(machine, "one tower", 128)
    rows = []
    for index, devices in enumerate(PASE_MESHES):
      data = predict_data(pricer, devices).seconds
      plan = predict_pase(pricer, devices).seconds
      trick = predict_trick(pricer, devices).seconds
      ratios = [published[one][index] for one in published]
      orders = [
        _order({"P": pase, "T": other, "D": 1.0})
        for pase, other in (ratios, (data / plan, data / trick))
      ]
      # (data + more) / (plan + more) is what was published.
      more = (data - ratios[0] * plan) / (ratios[0] - 1)
      rows.append(
        (
          str(devices),
          f"{ratios[0]:.2f}",
          f"{data / plan:.2f}",
          f"{ratios[1]:.2f}",
          f"{data / trick:.2f}",
          *orders,
          _ms(data),
          _ms(plan),
          f"{1e3 * more:.0f}",
        )
      )
    yield Table(
      title=f"PaSE: times as fast as data parallel (D), {name}, 128 images",
      header=(
        *("GPUs", "PaSE (P), published", "predicted"),
        *("one weird trick (T), published", "predicted"),
        *("order, published", "order, predicted"),
        *("data parallel, ms", "PaSE's, ms", "more ms in each"),
      ),
      rows=rows,
    )
    if searches:
      found = spaces[PASE_DEVICES].find_fastest(pricer).prediction
      layouts.append((f"{name}, fastest of all", found))
    table2 = predict(pricer, PASE)
    trick = predict_trick(pricer, PASE_DEVICES)
    layouts.append((f"{name}, PaSE's table II", table2))
    layouts.append((f"{name}, one weird trick", trick))
  yield Table(
    title=f"PaSE: layouts of {PASE_DEVICES} GPUs",
    header=("machine", "parts: images x outputs x inputs", "predicted ms"),
    rows=[
      (
        name,
        _describe(one),
        _ms(one.seconds),
      )
      for name, one in layouts
    ],
  )


def compare_scalings() -> Table:
  rows = []
  for one in make_scalings():
    alone = one.rates[1]
    base = predict_data(
      make_pricer(one.machine, "tf_cnn_benchmarks", one.images_per_gpu), 1
    )
    for devices, rate in one.rates.items():
      if devices == 1:
        continue
      pricer = make_pricer(
        one.machine, "tf_cnn_benchmarks", one.images_per_gpu * devices
      )
      found = predict_data(pricer, devices)
      published = rate / alone
      ratio = devices * base.seconds / found.seconds
      most = devices * base.seconds / found.overlapped_seconds
      rows.append(
        (
          f"{one.source}, {devices}",
          f"{published:.2f}",
          f"{ratio:.2f}",
          _deviation(ratio, published),
          f"{most:.2f}",
        )
      )
  return Table(
    title="Data parallel in one host: speed-up",
    header=("source, GPUs", "published", "predicted", "deviation")
    + ("all overlaps",),
    rows=rows,
  )


def list_tables(searches: bool) -> Iterator[Table]:
  """Yields all tables; those of searches take minutes."""
  yield compare_one_gpu()
  yield compare_trick()
  yield from compare_optcnn(searches)
  yield from compare_flexflow(searches)
  yield from compare_pase(searches)
  yield compare_scalings()


def _describe(prediction: price.Prediction) -> str:
  """Says in how many parts each layer is split."""
  workload = prediction.workload
  layout = plan_lib.choose_placements(
    workload.network,
    prediction.layout,
    batch_size=workload.batch_size,
    exchange_dtype=workload.exchange_dtype,
  )
  pairs = zip(
    (layer.name for layer in workload.network.layers),
    (split[:3] for split in search.find_splits(layout, workload.network)),
    strict=True,
  )
  parts = []
  for split, same in itertools.groupby(pairs, key=lambda pair: pair[1]):
    names = [name for name, _ in same]
    label = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    parts.append(f"{label} {'x'.join(map(str, split))}")
  return ", ".join(parts)


def _order(speeds: dict[str, float]) -> str:
  """Says which is faster; `=` where it is by less than 1 %."""
  first, *others = sorted(speeds, key=speeds.__getitem__, reverse=True)
  text, last = first, speeds[first]
  for name in others:
    sign = "=" if last < 1.01 * speeds[name] else ">"
    text, last = f"{text} {sign} {name}", speeds[name]
  return text


def _deviation(found: float, published: float) -> str:
  return f"{100 * (found / published - 1):+.0f} %"


def _number(value: float) -> str:
  return f"{value:,.0f}"


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.2f}"


def define_flags() -> None:
  flags.DEFINE_bool("search", True, "Search for the fastest layouts, too.")


def main(argv: Sequence[str]) -> None:
  command.check_no_arguments(argv)
  console = command.make_console()
  tables: Iterable[Table] = list_tables(flags.FLAGS.search)
  for table in tables:
    command.print_line(console, table.to_markdown())


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)

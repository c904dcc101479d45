"""The configs that the pages of docs/ print are whole and do what they say."""

import collections
import json
import re
import types

import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.partition import catalog, plan
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.settings import fields, settings
from tests import processes

# Of PaSE's AlexNet: images in a step; values of an image that a layer reads.
IMAGES, READS = 128, {"conv5": 384 * 13 * 13, "fc6": 256 * 6 * 6}


def read_page(name: str) -> str:
  return (processes.ROOT / "docs" / f"{name}.md").read_text()


def find_configs() -> dict[str, str]:
  """Finds the complete config files: {name of their layout: text}."""
  texts = {}
  for page in ("partition", "networks"):
    blocks = re.findall(r"```python\n(.*?)```", read_page(page), re.DOTALL)
    for block in blocks:
      if "def get_config" in block:
        (name,) = re.findall(r'name="(\w+)",\n  mesh', block)
        texts[name] = block
  return texts


CONFIGS = find_configs()


def read_config(name: str):
  module = types.ModuleType(name)
  exec(CONFIGS[name], module.__dict__)
  return module.get_config()


def plan_step(network, layout):
  return plan.make_plan(network, layout, batch_size=IMAGES)


def count_sum(elements, devices):
  """Elements that each of a ring sends for a sum."""
  return 2 * elements * (devices - 1) // devices


@pytest.fixture(scope="module")
def pase():
  """Network and layout of PaSE's optimum for 32 devices."""
  return settings.check(read_config("pase"))


@pytest.mark.parametrize("name", ("pairs", "pase", "grid"))
def test_every_config_of_the_pages_is_accepted(name):
  _, layout = settings.check(read_config(name))
  assert layout.name == name


def test_pages_name_every_layout_and_wiring_of_the_catalog():
  layouts, networks = read_page("partition"), read_page("networks")
  for layout in catalog.LAYOUTS:
    assert f"| [`{layout.name}`]" in layouts
  for table in wirings.WIRINGS:
    ablation = table.name.startswith(("without_", "dropout_", "stochastic_"))
    assert ablation or f"| `{table.name}` |" in networks


def test_the_machine_of_the_page_is_a_machine_file():
  (text,) = re.findall(r"```json\n(.*?)```", read_page("planner"), re.DOTALL)
  machine = machine_lib.from_json(json.loads(text), name="planner.md")
  table = read_page("planner")
  # Eight devices on two hosts, and each of its fields is explained.
  machine.check_devices(8)
  assert machine.with_hosts(4, 2).devices == 8
  for place in machine.sources:
    name = re.sub(r"\[\d+\]", "[]", place)
    known = any(
      f"| `{part}` |" in table for part in (name, name.rpartition(".")[0])
    )
    assert known, place
  for what in machine_lib.PARTS:
    assert f"| `{what}` |" in table


def test_pages_set_fields_that_there_are():
  for page in ("partition", "networks", "training", "design", "planner"):
    for name in re.findall(r"--config\.([\w.]+)=", read_page(page)):
      assert fields.find_field(name), name


def test_between_dense_layers_of_pase_partial_sums_alone_are_sent(pase):
  network, layout = pase
  found = collections.Counter(
    (one.layer, one.direction, one.kind, one.devices, one.elements)
    for one in plan_step(network, layout)
    if one.layer in ("fc7", "fc8")
    or (one.layer, one.kind) == ("fc6", "sum")
    or (one.layer.startswith("fc") and one.tensor != plan.ACTIVATION)
  )
  # fc6 and fc8 have 1/4 of their outputs on a device, fc7 has 1/8; each adds
  # over the devices that share the inputs, 8 or 4. Backward the gradients of
  # the inputs are added over those that share the outputs.
  fc6, fc7, fc8 = IMAGES * 4096 // 4, IMAGES * 4096 // 8, IMAGES * 1000 // 4
  assert found == collections.Counter(
    [
      ("fc6", "forward", "sum", 8, fc6),
      ("fc7", "backward", "sum", 8, fc6),
      ("fc7", "forward", "sum", 4, fc7),
      ("fc8", "backward", "sum", 4, fc7),
      ("fc8", "forward", "sum", 8, fc8),
    ]
  )


def test_bytes_of_pase_are_those_of_the_formulas(pase):
  found = collections.Counter()
  for one in plan_step(*pase):
    tensor = "weights" if one.tensor in plan.PARAMETERS else "activations"
    found[one.layer, tensor] += one.sent_bytes
  weights = {
    "conv1": (11 * 11 * 3 * 96, 96),
    "conv2": (5 * 5 * 96 * 256, 256),
    "conv3": (3 * 3 * 256 * 384, 384),
    "conv4": (3 * 3 * 384 * 384, 384),
  }
  expected = {
    (layer, "weights"): 4 * sum(count_sum(size, 32) for size in sizes)
    for layer, sizes in weights.items()
  }
  # Half of the inputs, and scattered sums: half of the biases.
  conv5 = count_sum(3 * 3 * 192 * 256, 16) + count_sum(128, 16)
  # A group of two has 8 images: half of the images for half of the maps, and
  # the sums scattered; each is sent back for the gradients.
  conv5_images = 8 * READS["conv5"] // 4 + 8 * 256 * 13 * 13 // 2
  # Four devices with 32 images and half of the maps each exchange images for
  # maps; then four gather their images.
  fc6 = 32 * READS["fc6"] // 2 * 3 // 16 + IMAGES * READS["fc6"] // 8 * 3 // 4
  fc6_sum = count_sum(IMAGES * 1024, 8)
  fc7 = count_sum(IMAGES * 1024, 8)
  expected |= {
    ("conv5", "weights"): 4 * conv5,
    ("conv5", "activations"): 4 * 2 * conv5_images,
    ("fc6", "activations"): 4 * (2 * fc6 + fc6_sum),
    ("fc7", "activations"): 4 * (fc7 + count_sum(IMAGES * 512, 4)),
    ("fc8", "activations"): 4
    * (count_sum(IMAGES * 512, 4) + count_sum(IMAGES * 250, 8)),
    # Complete logits, and four sums of the loss.
    ("loss", "activations"): 4 * (2 * IMAGES * 1000 * 3 // 4 + count_sum(4, 4)),
  }
  assert found == expected
  assert sum(expected.values()) == 32_643_000  # as the page says


@pytest.mark.parametrize(
  ("name", "mesh", "megabytes"),
  [
    ("two_dimensional", {"data": 1, "x": 8, "y": 4}, 33.797),
    ("one_weird_trick", {"data": 1, "model": 32}, 38.445),
    ("data_parallel", {"data": 32}, 483.432),
  ],
)
def test_page_compares_pase_with_what_others_send(pase, name, mesh, megabytes):
  network, _ = pase
  layout = layout_lib.override(catalog.find(name), mesh=mesh, placements={})
  sent = sum(one.sent_bytes for one in plan_step(network, layout))
  assert round(sent / 1e6, 3) == megabytes
  (row,) = re.findall(r"\| in all \|.*", read_page("partition"))
  assert f" {megabytes} |" in row


@pytest.mark.slow
def test_pase_compiles_for_32_devices_as_planned(tmp_path):
  path = tmp_path / "pase.py"
  path.write_text(CONFIGS["pase"])
  ended = processes.run(
    [
      *("python", "-m", "alexnet_jax.inspect", f"--config={path}"),
      *("--simulate_devices=32", "--format=json"),
    ],
    tmp_path,
    timeout=900,
  )
  assert ended.code == 0, ended.errors
  found = json.loads(ended.out)
  assert found["devices"] == 32
  assert found["audit"] == {
    "agrees": True,
    "unplanned": [],
    "missing": [],
    "notes": [],
  }
  for step in ("planned", "traced", "compiled"):
    sent = sum(line[f"{step}_bytes"] for line in found["exchanges"])
    assert sent == 32_643_000


def test_table_of_layouts_has_all_of_the_catalog():
  text = (processes.ROOT / "docs/layouts/compare.txt").read_text()
  for layout in catalog.LAYOUTS:
    if layout.devices > 1:
      assert f"\n{layout.name} " in text, f"{layout.name}: run make docs"

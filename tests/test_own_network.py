"""A network and a layout of a user, in a file that is soon gone."""

import json

import pytest

from tests import processes

pytestmark = pytest.mark.slow

# Eleven layers of both kinds; every way to read, to normalize and to pool.
# The layout splits each dimension, two of them at once in `hidden`.
MINE = """
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout
from configs import default

Layer, Pool, Placement = wiring.Layer, wiring.Pool, layout.Placement

ELEVEN = wiring.Wiring(
  name="eleven",
  columns=2,
  layers=(
    Layer(name="entry", reads="image", features=8, window=7, stride=3,
          padding=(2, 2), normalize="column", pool=Pool()),
    Layer(name="squeeze", reads="own", features=8, window=1),
    Layer(name="mix", reads="all", features=16, window=3, padding=(1, 1),
          normalize="across", pool=Pool(window=2, stride=1, padding=(0, 1)),
          order=("activation", "pooling", "normalization")),
    Layer(name="deep1", reads="own", features=16, window=3, padding=(1, 1),
          normalize="batch"),
    Layer(name="deep11", reads="own", features=16, window=3),
    Layer(name="wide", reads="all", features=24, window=3, stride=2,
          padding=(1, 1), normalize="map", lrn=wiring.Lrn(size=3)),
    Layer(name="join", reads="all", features=16, window=2),
    Layer(name="tail", reads="own", features=16, window=3, padding=(1, 1),
          pool=Pool(kind="average")),
    Layer(name="hidden", reads="all", features=32, dropout=True),
    Layer(name="Last2", reads="own", features=32, activation="tanh"),
    Layer(name="verdict", reads="all", features=10, activation="linear"),
  ),
)
GRID = layout.Layout(
  name="grid",
  mesh={"rows": 2, "parts": 2},
  conv=Placement(batch=("rows",), outputs=("parts",)),
  fc=Placement(batch=("rows",), features=("parts",)),
  layers={
    "join": Placement(batch=("rows",), inputs=("parts",)),
    "hidden": Placement(outputs=("rows",), inputs=("parts",)),
    "verdict": Placement(batch=("rows",), fsdp=("rows",)),
  },
)
ROWS = layout.Layout(
  name="rows",
  mesh={"rows": 4},
  conv=Placement(batch=("rows",)),
  fc=Placement(batch=("rows",)),
)


def get_config(variant="grid"):
  config = default.get_config("digits")
  default.use_wiring(config, ELEVEN)
  default.use_layout(config, {"grid": GRID, "rows": ROWS}[variant])
  return config
"""
NAMES = ("entry", "squeeze", "mix", "deep1", "deep11", "wide", "join", "tail")
NAMES += ("hidden", "Last2", "verdict")


def run(place, module, *arguments):
  """What a command prints; it must end well, with nothing on its errors."""
  running = processes.start(place, 1, arguments, module=module)
  ((code, printed, errors),) = processes.finish(running)
  assert (code, errors) == (0, ""), errors
  return printed


def test_own_network_of_eleven_layers_outlives_its_config_file(folder):
  place = folder("eleven layers")
  config, workdir = place / "mine.py", place / "workdir"
  config.write_text(MINE)
  _, *flags = processes.flags("mine", place, {"network.width": 1.0})
  printed = run(place, "main", f"--config={config}", *flags)
  assert "rows=2, parts=2" in printed
  assert processes.metrics(place)[-1]["step"] == 9

  # The config is where the run does not look for it.
  rows = config.rename(place / "rows.py")
  stored = f"--workdir={workdir}", f"--data_dir={place.parent}/data"
  run(place, "main", *stored, "--config.num_epochs=5")
  trained = processes.metrics(place)[-1]
  assert trained["step"] == 15
  order = json.loads((workdir / "config.json").read_text())["network.order"]
  assert tuple(order) == NAMES

  found = place / "rows.json"
  chosen = f"--layout={rows}:rows", "--mesh=rows=2", f"--json={found}"
  heading = "step 15, layout rows (rows=2), 21 images"
  assert heading in run(place, "evaluate", *stored, *chosen)
  line = json.loads(found.read_text())["lines"][0]
  assert line["top1_error"] == trained["validation_top1_error"]
  # Another layout adds up in another order, in float32.
  loss = pytest.approx(trained["validation_loss"], rel=1e-5)
  assert line["loss"] == loss

  rows.unlink()
  heading = "step 15, layout grid (rows=2, parts=2), 21 images"
  assert heading in run(place, "evaluate", *stored)

  picture = place / "grid.svg"
  source = f"--config={workdir}"
  printed = run(place, "inspect", source, f"--picture={picture}")
  drawn = picture.read_text()
  assert [name for name in NAMES if name not in printed] == []
  assert [name for name in NAMES if name not in drawn] == []
  printed = run(place, "complexity", source)
  assert [name for name in NAMES if name not in printed] == []

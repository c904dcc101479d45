"""Wrong wirings and layouts of a config: one line each, and what to write."""

import dataclasses

import pytest

from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import settings
from configs import default

Layer, Pool, Lrn = wiring_lib.Layer, wiring_lib.Pool, wiring_lib.Lrn
Placement = layout_lib.Placement

ROWS = (
  Layer(
    name="stem",
    reads="image",
    features=24,
    window=5,
    stride=2,
    padding=(2, 2),
    normalize="column",
    pool=Pool(),
  ),
  Layer(
    name="deep",
    reads="own",
    features=48,
    window=3,
    padding=(1, 1),
    pool=Pool(kind="average"),
  ),
  Layer(name="meet", reads="all", features=36, window=3, normalize="across"),
  Layer(name="hidden", reads="all", features=60, dropout=True),
  Layer(name="top", reads="all", features=10, activation="linear"),
)


def check(*, columns=2, mesh=None, conv=None, fc=None, layers=None, **rows):
  """Checks a config, with changes of single rows and a layout."""
  table = wiring_lib.Wiring(
    name="mine",
    columns=columns,
    layers=tuple(
      dataclasses.replace(row, **rows.get(row.name, {})) for row in ROWS
    ),
  )
  placements = {"conv": conv, "fc": fc, "layers": layers}
  layout = layout_lib.Layout(
    name="mine",
    mesh={"data": 2, "model": 4} if mesh is None else mesh,
    **{name: value for name, value in placements.items() if value is not None},
  )
  config = default.get_config("digits")
  default.use_wiring(config, table)
  default.use_layout(config, layout)
  return settings.check(config)


def test_network_and_layout_of_these_tests_are_accepted():
  network, layout = check(fc=Placement(batch=("data",), features=("model",)))
  assert [layer.name for layer in network.layers] == [row.name for row in ROWS]
  assert layout.devices == 8


# What is changed; words of the error: the layer, the field, sizes, the advice.
WRONG_WIRINGS = {
  "two layers of one name": (
    {"deep": {"name": "stem"}},
    ["'stem'", "no layer before", "Write name="],
  ),
  "reserved name": (
    {"deep": {"name": "mesh"}},
    ["'mesh'", "not reserved", "Write name="],
  ),
  "name of JAX's own": (
    {"deep": {"name": "transpose"}},
    ["'transpose'", "not reserved", "Write name="],
  ),
  "name of another kind": (
    {"deep": {"name": "2nd"}},
    ["'2nd'", "begins with a letter", "Write name="],
  ),
  "reads what there is not": (
    {"deep": {"reads": "both"}},
    ["deep.reads is 'both'", "image, own, all", "Write reads="],
  ),
  "image in the middle": (
    {"deep": {"reads": "image"}},
    ["deep.reads", "'image'", "after stem", "Write reads='all'"],
  ),
  "first layer without the image": (
    {"stem": {"reads": "all"}},
    ["stem.reads", "'all'", "Write reads='image'"],
  ),
  "columns that do not divide": (
    {"columns": 5},
    ["5 columns", "stem", "24 features", "config.network.columns"],
  ),
  "features that do not divide": (
    {"deep": {"features": 49}},
    ["2 columns", "deep", "49 features"],
  ),
  "half a feature": (
    {"deep": {"features": 48.5}},
    ["deep.features is 48.5", "an integer", "Write features="],
  ),
  "order without a word": (
    {"deep": {"order": ("pooling", "activation")}},
    ["deep.order is ('pooling'", "each once", "Write order=('activation'"],
  ),
  "padding of one number": (
    {"deep": {"padding": 1}},
    ["deep.padding is 1", "(before, after)", "Write padding=(1, 1)"],
  ),
  "padding of a whole window": (
    {"deep": {"pool": Pool(padding=(3, 0))}},
    ["deep.pool.padding", "(3, 0)", "window of 3", "Write padding=(0, 0)"],
  ),
  "window wider than its map": (
    {"meet": {"window": 30}},
    ["meet", "7 pixels", "window of 30", "image of 67"],
  ),
  "stochastic pooling of negative values": (
    {"deep": {"pool": Pool(kind="stochastic"), "activation": "tanh"}},
    ["deep", "stochastic", "tanh", "relu or sigmoid"],
  ),
  "pooling of units": (
    {"hidden": {"pool": Pool()}},
    ["hidden.pool", "its window is 0", "Write pool=None"],
  ),
  "convolution of units": (
    {"top": {"window": 3}},
    ["top.window is 3", "reads hidden", "Write window=0"],
  ),
  "even window of maps": (
    {"meet": {"lrn": Lrn(size=4)}},
    ["meet.lrn.size is 4", "odd", "Write size=5"],
  ),
  "logits of a column": (
    {"top": {"reads": "own"}},
    ["top.reads is 'own'", "last layer", "Write reads='all'"],
  ),
  "logits without a sign": (
    {"top": {"activation": "relu"}},
    ["top.activation is 'relu'", "last layer", "Write activation='linear'"],
  ),
  "rate above one": (
    {"hidden": {"dropout_rate": 1.5}},
    ["hidden.dropout_rate is 1.5", "below 1", "Write dropout_rate="],
  ),
  "rate without dropout": (
    {"meet": {"dropout_rate": 0.3}},
    ["meet.dropout_rate is 0.3", "its dropout is False", "dropout_rate=None"],
  ),
  "pooling that is none": (
    {"stem": {"pool": Pool(kind="none")}},
    ["stem.pool.kind is 'none'", "one of max", "or pool=None for none"],
  ),
}
WRONG_LAYOUTS = {
  "forgotten comma": (
    {"fc": Placement(batch=("data"))},
    ["fc.batch is 'data'", "a tuple", "Write batch=('data',)"],
  ),
  "list": (
    {"fc": Placement(batch=["data"])},
    ["fc.batch is ['data']", "a tuple", "Write batch=("],
  ),
  "numbers": (
    {"layers": {"deep": Placement(outputs=(4,))}},
    ["deep.outputs is (4,)", "names of mesh axes", "Write outputs=("],
  ),
  "dict": (
    {"fc": {"batch": ("data",)}},
    ["fc is {'batch'", "Write fc=Placement(batch="],
  ),
  "layer that there is not": (
    {"layers": {"dep": Placement()}},
    ["'dep'", "stem, deep, meet, hidden, top", "config.layout.dep"],
  ),
  "axis that there is not": (
    {"layers": {"deep": Placement(outputs=("modell",))}},
    ["deep", "'modell'", "data=2, model=4", "config.layout.deep.outputs"],
  ),
  "one axis twice": (
    {"layers": {"hidden": Placement(outputs=("model", "model"))}},
    ["hidden", "twice", "config.layout.hidden.outputs"],
  ),
  "one axis for two dimensions": (
    {"layers": {"hidden": Placement(batch=("data",), inputs=("data",))}},
    ["hidden", "its batch and its inputs", "config.layout.hidden.inputs"],
  ),
  "batch that does not divide": (
    {"mesh": {"data": 3}, "conv": Placement(batch=("data",))},
    ["batch of 64", "3 devices", "stem", "config.batch_size"],
  ),
  "columns that stay together": (
    {"mesh": {"data": 3}, "layers": {"deep": Placement(outputs=("data",))}},
    ["deep", "3 devices", "2 columns", "config.layout.deep.outputs"],
  ),
  "outputs that do not divide": (
    {"mesh": {"model": 8}, "layers": {"hidden": Placement(outputs=("model",))}},
    ["hidden", "60 features", "8 devices", "config.layout.hidden.outputs"],
  ),
  "inputs that do not divide": (
    {"mesh": {"model": 8}, "layers": {"hidden": Placement(inputs=("model",))}},
    ["hidden", "36 channels", "8 devices", "config.layout.hidden.inputs"],
  ),
  "features that do not divide either way": (
    {
      "mesh": {"model": 7},
      "layers": {"hidden": Placement(features=("model",))},
    },
    ["hidden", "60 features", "7 devices", "config.layout.hidden.features"],
  ),
  "inputs of the image": (
    {"layers": {"stem": Placement(inputs=("data",))}},
    ["stem reads the image", "3 channels", "config.layout.stem.outputs"],
  ),
  "inputs of two columns": (
    {"layers": {"deep": Placement(inputs=("data",))}},
    ["deep", "one column", "2 columns", "config.layout.deep.outputs"],
  ),
  "inputs inside a column": (
    {
      "mesh": {"data": 2, "model": 5},
      "layers": {"deep": Placement(outputs=("data",), inputs=("model",))},
    },
    ["deep", "5 devices", "12 channels", "config.layout.deep.inputs"],
  ),
  "too few maps to normalize": (
    {"mesh": {"model": 36}, "layers": {"meet": Placement(outputs=("model",))}},
    ["meet", "2 maps", "only 1 of its 36", "config.layout.meet.outputs"],
  ),
  "shards along no axis of the batch": (
    {"layers": {"hidden": Placement(fsdp=("data",))}},
    ["hidden", "'data'", "no axis", "config.layout.hidden.fsdp"],
  ),
  "shards that do not divide": (
    {"mesh": {"data": 8}, "fc": Placement(batch=("data",), fsdp=("data",))},
    ["hidden", "60 outputs", "8 devices", "config.layout.hidden.fsdp"],
  ),
  "orders that contradict each other": (
    {
      "mesh": {"a": 2, "b": 2},
      "conv": Placement(batch=("a", "b")),
      "fc": Placement(batch=("b", "a")),
    },
    ["hidden", "(b=2, a=2)", "(a=2, b=2)", "config.layout.hidden"],
  ),
  "half a device": (
    {"mesh": {"data": 2.5}},
    ["mesh", "2.5", "'data'", "Write mesh={'data': 2}"],
  ),
}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    pytest.param(*case, id=name)
    for name, case in (WRONG_WIRINGS | WRONG_LAYOUTS).items()
  ],
)
def test_wrong_wiring_or_layout_is_refused_in_one_line(changes, words):
  with pytest.raises((ValueError, TypeError)) as error:
    check(**changes)
  message = str(error.value)
  assert "\n" not in message
  assert [word for word in words if word not in message] == [], message

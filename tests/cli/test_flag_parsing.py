import copy
import json
import pathlib
import re

import jax
import pytest
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import command, flag_parsing
from alexnet_jax.settings import fields
from configs import default
from tests import processes

# How ml_collections loads the file of a config.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
CONFIG = "configs/one_device.py"
NEW_FLAGS = ("hang_timeout_seconds", "allow_config_changes", "implementations")


@pytest.fixture
def parse(monkeypatch):
  """Parses arguments as a command does that has a config and some flags."""

  def parse(*arguments):
    argv, defined = ["program", *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file(
      *("config", None, "text"),
      flag_values=defined,
      sys_argv=flag_parsing.ARGUMENTS,
    )
    flags.mark_flag_as_required("config", flag_values=defined)
    flags.DEFINE_string("what", "step", "text", flag_values=defined)
    flags.DEFINE_integer("rounds", 1, "text", flag_values=defined)
    flags.DEFINE_string("workdir", None, "text", flag_values=defined)
    for name in NEW_FLAGS:
      flags.DEFINE_string(name, None, "text", flag_values=defined)
    paths = flag_parsing.PathParser(remedy="Copy it.", accepted=["gs://"])
    flags.DEFINE(paths, "data_dir", None, "text", flag_values=defined)
    monkeypatch.setattr(flags, "FLAGS", defined)
    return flag_parsing.parse(argv), defined

  return parse


@pytest.fixture
def write_config(tmp_path):
  """Writes a config file that runs a line, and returns its path."""

  def write(line):
    file = tmp_path / "mine.py"
    file.write_text(
      "from configs import default\ndef get_config():\n"
      f"  config = default.get_config()\n  {line}\n  return config\n"
    )
    return str(file)

  return write


def to_layer(name):
  return name.replace("LAYER", "conv2")


@pytest.mark.parametrize(("old", "new"), flag_parsing._RENAMED_FIELDS.items())
def test_old_field_is_refused_with_the_new_name(old, new, parse, write_config):
  old, new = to_layer(old), to_layer(new)
  expected = f"the field {old} is now called {new}. Set config.{new}."
  group, _, name = old.rpartition(".")
  assigned = write_config(
    f"config.{group} = {{{name!r}: 1}}"
    if group == "layout.conv2"
    else f"config.{old} = 1"
  )
  for arguments in (
    (f"--config={CONFIG}", f"--config.{old}=1"),
    ("--config", CONFIG, f"--config.{old}", "1"),
    (f"--config={assigned}",),
  ):
    with pytest.raises(ValueError) as error:
      parse(*arguments)
    assert str(error.value) == expected
  group, name = f"config.{old}".rsplit(".", 1)
  read = write_config(f"{group}.{name} *= 2")
  with pytest.raises(ValueError, match=f"line 4 of .*{name},? .*now called"):
    parse(f"--config={read}")


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("--stuck_seconds=5", "--stuck_seconds is now called --hang_timeout_sec"),
    ("--accept_changes", "accept_changes is now called --allow_config_changes"),
    ("--noaccept_changes", "--accept_changes is now called --allow_config_cha"),
    ("--forms=plain", "--forms is now called --implementations"),
    ("--what=forms", "'forms' in --what .* Set --what=implementations."),
    (
      "--config=configs/ablations.py:no_colour_noise,imagenet",
      "Set --config=configs/ablations.py:no_color_noise,imagenet.",
    ),
  ],
)
def test_old_flag_or_value_is_refused_with_the_new_one(given, expected, parse):
  with pytest.raises(ValueError, match=expected) as error:
    parse(f"--config={CONFIG}", given)
  assert "\n" not in str(error.value)


def test_new_names_are_those_of_fields():
  names = map(to_layer, flag_parsing._RENAMED_FIELDS.values())
  assert all(map(fields.find_field, names))


# --config.GROUP.FIELD, its value, and the value that the field then has.
LAYER_FIELDS = [
  ("layout.fc7.inputs", "('model',)", ("model",)),
  ("layout.stem.outputs", "()", ()),
  ("layout.stem.overlap_gather", "true", True),
  ("network.layers.conv4.features", "192", 192),
  ("network.layers.conv4.activation", "tanh", "tanh"),
  ("network.layers.conv4.padding", "(1, 2)", (1, 2)),
  ("network.layers.conv4.dropout", "false", False),
  ("network.layers.conv4.dropout_rate", "0.25", 0.25),
  ("network.layers.conv4.kernel_std", "1e-2", 0.01),
  ("network.layers.conv1.pool.window", "3", 3),
  ("network.layers.conv1.pool.kind", "none", "none"),
  ("network.layers.conv1.lrn.k", "1", 1.0),
  ("network.layers.conv1.map_lrn.size", "0", 0),
  ("optimizer.layers.conv1.lr_multiplier", "0", 0.0),
  (
    "optimizer.layers.conv1.rates",
    "((1.5, 0.1), (2, 0))",
    ((1.5, 0.1), (2, 0)),
  ),
  ("optimizer.layers.stem.weight_decay", "1e-3", 0.001),
]


def test_rule_of_a_layer_has_the_fields_of_the_table():
  table = fields._find_table("optimizer.layers.conv1")
  assert flag_parsing._LAYER_RULE.keys() == table.keys()


@pytest.mark.parametrize(("field", "value", "expected"), LAYER_FIELDS)
def test_field_of_a_single_layer_is_made_by_its_flag(
  field, value, expected, parse
):
  wiring = "--config.network.wiring=one_gpu"
  for arguments in (
    (f"--config.{field}={value}",),
    (f"--config.{field}=None", f"--config.{field}={value}"),
    (wiring, f"--config.{field}={value}"),
    (f"--config.{field}={value}", wiring),
  ):
    _, defined = parse(f"--config={CONFIG}", *arguments)
    found = config_path.get_value(field, defined.config)
    assert found == expected and type(found) is type(expected)
    assert defined.config.is_locked
    assert defined.config[field.split(".")[0]].is_locked


def test_flag_changes_a_layer_that_the_file_has(parse, write_config):
  file = write_config("config.layout.fc7 = {'batch': ('data',)}")
  _, defined = parse(f"--config={file}", "--config.layout.fc7.inputs=('a',)")
  assert defined.config.layout.fc7.to_dict() == {
    "batch": ("data",),
    "inputs": ("a",),
  }


def test_flag_makes_a_fraction_of_an_integer_of_the_file(parse, write_config):
  file = write_config("config.optimizer.layers.fc8 = {'lr_multiplier': 0}")
  flag = "--config.optimizer.layers.fc8.lr_multiplier=0.5"
  _, defined = parse(f"--config={file}", flag)
  assert defined.config.optimizer.layers.fc8.lr_multiplier == 0.5


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("layout.fc7.inptus=1", "no field config.layout.fc7.inptus, expected one"),
    (
      "network.layers.conv1.featurs=1",
      "no field config.network.layers.conv1.f",
    ),
    ("network.layers.conv1.pool.side=1", "expected one of window, stride"),
    (
      "network.layers.conv1.name=a",
      "no field config.network.layers.conv1.name",
    ),
    ("network.layers.conv1.pool=None", "conv1.pool is None, but it is a group"),
    ("network.layers.conv1.pool=3", "conv1.pool is '3', but it is a group"),
    ("network.layers.conv1.stride=a", "conv1.stride is 'a', expected an integ"),
    (
      "layout.fc7.arrive=sum",
      "layout.fc7.arrive is gone: write layout.fc7.out",
    ),
    (
      "layout.fc.arrive=sum",
      "layout.fc.arrive is gone: write layout.fc.output",
    ),
    ("layout.update.inputs=a", "a layer 'update', expected a name"),
    ("network.layers.keys.stride=1", "a layer 'keys', expected a name"),
    ("layout.mesh.rows=2", "the config has no field config.layout.mesh.rows"),
    ("optimizer.layers.fc8.rate=1", "expected one of lr_multiplier, rates, we"),
    ("layout.axess=2", "the config has no field config.layout.axess"),
  ],
)
def test_field_that_no_layer_has_is_refused(argument, expected, parse):
  with pytest.raises(ValueError, match=re.escape(expected)) as error:
    parse(f"--config={CONFIG}", f"--config.{argument}")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    (
      "network.layers.conv4=8",
      "one, such as --config.network.layers.conv4.fea",
    ),
    ("network.layers.conv4=None", "conv4 is None, but it is a group of fields"),
    ("network.layers=8", "such as --config.network.layers.conv4.features=192."),
    ("layout.fc7=('model',)", "such as --config.layout.fc7.outputs="),
    ("layout.fc7 None", "A layer is a group of fields: set them one by one"),
    ("layout.fc=3", "such as --config.layout.fc.outputs="),
    ("layout.mesh=4", "such as --config.layout.mesh.data=2."),
    ("optimizer.layers=0", "such as --config.optimizer.layers.conv1.lr_multip"),
    ("optimizer.layers.fc8=0", "config.optimizer.layers.fc8.lr_multiplier=0."),
    ("optimizer=4", "such as --config.optimizer.FIELD=VALUE; configs/default"),
    ("network.layers.conv1.pool=max", "conv1.pool.kind=average."),
    (
      "network.layers.conv1.pool=none",
      "For none set --config.network.layers.c",
    ),
    ("network.layers.conv1.pool None", "conv1.pool.kind=none."),
    ("network.layers.conv1.map_lrn=None", "conv1.map_lrn.size=0."),
    ("network.layers.conv1.lrn=none", "layers.conv1.normalize=none."),
  ],
)
def test_value_of_a_group_is_refused_with_a_field_inside(
  argument, expected, parse
):
  with pytest.raises(ValueError, match=re.escape(expected)) as error:
    parse(f"--config={CONFIG}", *f"--config.{argument}".split(" "))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    (
      "config.layout.fc.batch = ('data')",
      "layout.fc.batch is 'data', expected a tuple. Write ('data',)",
    ),
    ("config.network.layers = 3", "network.layers is '3', but it is a group o"),
    (
      "config.layout.axes = 'column, data'",
      "expected a tuple. Write ('column', 'data'): a comma makes the tuple.",
    ),
    (
      "config.layout.fc6.stored *= 2",
      "layout.fc6.stored is now called layout.fc6.fsdp. Set config.layout.fc6.",
    ),
    ("config.layout.fc6.arrive = 'sum'", "the field layout.fc6.arrive is gone"),
    (
      "config.layout.fc6.inputs = ('data',)",
      "Write config.layout.fc6 = {'inputs': ...}.",
    ),
    (
      "config.network.layers.conv1.stride = 2",
      "Write config.network.layers.conv1 = {'stride': ...}.",
    ),
    (
      "config.optimizer.layers.conv1.lr_multiplier = 0.0",
      "Write config.optimizer.layers.conv1 = {'lr_multiplier': ...}.",
    ),
  ],
)
def test_line_that_sets_a_layer_wrongly_is_told(
  line, expected, parse, write_config
):
  with pytest.raises(ValueError, match="^line 4 of .*mine.py: ") as error:
    parse(f"--config={write_config(line)}")
  assert expected in str(error.value) and "\n" not in str(error.value)


def test_old_placement_in_a_config_file_is_refused(parse, write_config):
  file = write_config("config.layout.fc6 = {'arrive': 'sum'}")
  with pytest.raises(ValueError, match="^the field layout.fc6.arrive is gone"):
    parse(f"--config={file}")
  file = write_config(
    "from alexnet_jax.partition import layout; layout.Placement(arrive='sum')"
  )
  with pytest.raises(ValueError, match="a Placement has no arrive: write outp"):
    parse(f"--config={file}")


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (None, "there is no config file .*. Set --layout."),
    ("x = 1", "has no function get_config, expected one that returns a con"),
    ("def get_config(): return 3", "returns 3, expected an ml_collections.Co"),
    ("def get_config():\n  1 / 0", "line 2 of .* cannot be run .* set --layo"),
    ("import nothing_such", "line 1 of .* cannot be run .*nothing_such"),
    ("def get_config(:", "line 1 of .* cannot be run .*SyntaxError"),
  ],
)
def test_config_of_another_flag_is_refused_by_its_line(
  text, expected, tmp_path
):
  file = tmp_path / "mine.py"
  if text is not None:
    file.write_text(text)
  with pytest.raises((ValueError, OSError), match=expected) as error:
    flag_parsing.load_config(str(file), flag="layout")
  assert "\n" not in str(error.value)


def test_config_of_another_flag_is_loaded_with_its_variant(write_config):
  file = write_config("pass")
  assert flag_parsing.load_config(file, flag="layout").layout.name
  loaded = flag_parsing.load_config(f"{CONFIG}:imagenet", flag="layout")
  assert loaded.network.num_classes == 1000


@pytest.mark.parametrize(
  ("layout", "expected"),
  [
    ("runs/none", "config file 'runs/none', NAME.py, .* no workdir of a run"),
    ("RUN/config.json", "there is no config file .*, NAME.py, .* Set --layout"),
    ("none.py", "there is no config file 'none.py'.* Set --layout."),
    ("RUN:imagenet", "run, which has no variants. Set --layout=.*/workdir.$"),
  ],
)
def test_file_or_workdir_without_a_layout_is_refused(
  layout, expected, tmp_path
):
  (tmp_path / "workdir").mkdir()
  (tmp_path / "workdir" / "config.json").write_text("{}")
  layout = layout.replace("RUN", str(tmp_path / "workdir"))
  with pytest.raises((ValueError, OSError), match=expected) as error:
    command.find_layout(layout, flag="layout")
  assert "\n" not in str(error.value)
  assert command.find_layout("two_column", flag="layout") == "two_column"


def test_workdir_of_a_run_is_a_config(parse, tmp_path, monkeypatch):
  config = default.get_config()
  config.batch_size = 7
  config.layout.fc7 = {"inputs": ("model",)}
  found = {"dataset": "d", "statistics": "s", "training_images": 48}
  kept = workdir_lib.flatten_config(config.to_dict(), found)
  (tmp_path / "config.json").write_text(json.dumps(kept))
  sets = ("--config.layout.mesh.data=2", "--config.network.lrn_k=1")
  for arguments in (
    (f"--config={tmp_path}",),
    (f"--workdir={tmp_path}",),
    ("--workdir", str(tmp_path)),
  ):
    _, defined = parse(*arguments, *sets)
    expected = copy.deepcopy(config)
    expected.layout.mesh.data, expected.network.lrn_k = 2, 1.0
    assert defined.config.to_dict() == expected.to_dict()
  with pytest.raises(ValueError, match="run, which has no variants. Set --con"):
    parse(f"--config={tmp_path}:imagenet")
  # It is a layout, too.
  found = command.find_layout(str(tmp_path), flag="layout")
  assert found.fc7.inputs == ("model",)
  # A config that is given goes before that of the run.
  _, defined = parse(f"--config={CONFIG}", f"--workdir={tmp_path}")
  assert defined.config.batch_size == 64
  with pytest.raises(ValueError, match="--config is not given"):
    parse(f"--workdir={tmp_path / 'none'}")


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ((), "--config is not given. Set --config=configs/NAME.py"),
    (("--config=",), "there is no config file ''"),
    (("--config", "configs/three_device.py:imagenet"), "configs/three_device"),
    (("--config=configs",), "there is no config file 'configs'"),
  ],
)
def test_config_that_is_missing_is_named(arguments, expected, parse):
  with pytest.raises((ValueError, OSError), match=expected) as error:
    parse(*arguments)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("arguments", "field", "expected"),
  [
    (("augment.mean=None",), "augment.mean", None),
    (("network.activation=None",), "network.activation", None),
    (("data.seed=3", "data.seed=None"), "data.seed", None),
    (("data.seed=None", "data.seed=3"), "data.seed", 3),
    (("layout.mesh.column=None",), "layout.mesh.column", None),
    (("layout.fc6.batch=None",), "layout.fc6.batch", None),
    (("optimizer.ema_decay=None",), "optimizer.ema_decay", None),
    (("data.name=None",), "data.name", None),
    (("data.seed 3", "data.seed None"), "data.seed", None),
    (("data.seed None", "data.seed 3"), "data.seed", 3),
  ],
)
def test_none_unsets_a_field(arguments, field, expected, parse):
  words = " ".join(f"--config.{argument}" for argument in arguments).split()
  _, defined = parse(f"--config={CONFIG}", *words)
  value = config_path.get_value(field, defined.config)
  assert value == expected and type(value) is type(expected)
  overrides = config_flags.get_override_values(defined["config"])
  assert overrides == {field: expected}


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("--config.batch_size=128.0", "batch_size is '128.0', expected an integer"),
    ("--config.batch_size=1e3", "batch_size is '1e3', expected an integer"),
    ("--config.network.width=1/2", "width is '1/2', expected a number"),
    ("--config.augment.flip=yes", "flip is 'yes', expected true or false"),
    (
      "--config.optimizer=adam",
      "config.optimizer is 'adam', but it is a group",
    ),
    ("--config.optimizer=None", "config.optimizer is None, but it is a group"),
    ("--config.netwrk.width=None", "the config has no field config.netwrk"),
    ("--rounds=2.0", "--rounds is '2.0', expected an integer"),
  ],
)
def test_text_of_another_type_is_refused_in_words(argument, expected, parse):
  with pytest.raises(ValueError, match=re.escape(expected)) as error:
    parse(f"--config={CONFIG}", argument)
  assert "\n" not in str(error.value)


def test_field_before_its_config_is_refused(parse):
  with pytest.raises(ValueError, match="seed=1 stands before --config. Put"):
    parse("--config.seed=1", f"--config={CONFIG}")


def test_config_is_found_here_before_in_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = flag_parsing.find_config(f"{CONFIG}:imagenet")
  assert found.endswith(f"/{CONFIG}:imagenet") and found.startswith("/")
  (tmp_path / "configs").mkdir()
  (tmp_path / CONFIG).touch()
  assert flag_parsing.find_config(f"{CONFIG}:imagenet") == f"{CONFIG}:imagenet"


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("~", "{home}"),
    ("~/a b", "{home}/a b"),
    ("~root/a", "{root}/a"),
    ("./~/a", "./~/a"),
    ("a/~", "a/~"),
    ("file:///a/b%20[c]", "/a/b [c]"),
    ("file://localhost/a", "/a"),
    ("file:/a", "/a"),
    ("gs://bucket/a", "gs://bucket/a"),
    ("./gs://bucket", "./gs://bucket"),
    ("a:b", "a:b"),
    ("runs/12:30", "runs/12:30"),
    ("a,b", "a,b"),
  ],
)
def test_path_is_expanded_in_flag_and_variable(
  given, expected, parse, monkeypatch, tmp_path
):
  monkeypatch.setenv("HOME", str(tmp_path))
  root = pathlib.Path("~root").expanduser()
  expected = expected.format(home=tmp_path, root=root)
  _, found = parse(f"--config={CONFIG}", f"--data_dir={given}")
  assert found.data_dir == expected
  monkeypatch.setenv("TFDS_DATA_DIR", given)
  _, found = parse(f"--config={CONFIG}")
  assert found.data_dir == expected
  _, found = parse(f"--config={CONFIG}", "--data_dir=other")
  assert found.data_dir == "other"


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    *(
      (address, "is an address, .* Copy")
      for address in (
        *("s3://b/a", "gs:/b/a", "GS://b", "gs:b", "hdfs://h:9/a", "memory://"),
        *("file://host/a", "file://", "host:/a", " gs://b", "abfss://c@a/b"),
      )
    ),
    ("C:/a", "is a path of Windows"),
    ("C:", "is a path of Windows"),
    (r"c:\a", "is a path of Windows"),
    (r"\\host\a", "is a path of Windows"),
    ("~no_such_user/a", "no user 'no_such_user'"),
  ],
)
def test_path_that_is_not_of_this_file_system_is_refused(
  given, expected, parse, monkeypatch
):
  with pytest.raises(flags.IllegalFlagValueError, match=expected) as raised:
    parse(f"--config={CONFIG}", f"--data_dir={given}")
  assert repr(given)[1:-1] in str(raised.value)
  with pytest.raises(ValueError, match=expected):
    parse(f"--config={given}")
  monkeypatch.setenv("TFDS_DATA_DIR", given)
  with pytest.raises(ValueError, match=f"^TFDS_DATA_DIR: .*{expected}"):
    parse(f"--config={CONFIG}")


def test_cache_of_jax_is_expanded_where_no_flag_sets_it(parse, monkeypatch):
  kept = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("HOME", "/home/me")
  try:
    for given, expected in (("~/a", "/home/me/a"), ("gs://b/a", "gs://b/a")):
      monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
      parse(f"--config={CONFIG}")
      assert jax.config.jax_compilation_cache_dir == expected
    for given in ("gs:/a", "memory://a"):
      monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
      with pytest.raises(
        ValueError, match="^JAX_COMPILATION_CACHE_DIR: .*addr"
      ):
        parse(f"--config={CONFIG}")
  finally:
    jax.config.update("jax_compilation_cache_dir", kept)


def test_config_is_found_in_the_home_folder(parse, monkeypatch):
  monkeypatch.setenv("HOME", str(processes.ROOT))
  _, found = parse(f"--config=~/{CONFIG}")
  assert found.config.batch_size > 0


def test_every_flag_with_a_path_expands_it():
  """Flags of plain text are few; a new one that is a path has to say so."""
  sources = [
    path.read_text()
    for folder in ("alexnet_jax", "benchmarks")
    for path in (processes.ROOT / folder).rglob("*.py")
  ]
  names = re.findall(
    r"(?:DEFINE_(?:multi_)?string|define_list)\(\s*\"(\w+)\"", "".join(sources)
  )
  paths = re.findall(r"define_path\(\s*\"(\w+)\"", "".join(sources))
  assert {*names} == {
    *("name", "layout", "split", "topology", "implementations", "detail"),
    *("views", "mesh", "layouts", "devices", "batch_sizes", "wirings"),
    *("variants", "only", "hosts", "memory", "networks", "rates", "rate"),
    *("tracker", "y", "profile_steps"),
  }
  assert {*paths} == {
    *("workdir", "new_workdir", "data_dir", "from", "compilation_cache"),
    *("picture", "chart", "json", "predictions", "markdown", "folder"),
    *("to", "class_names", "check", "reference", "figures", "pictures"),
    *("torch_python", "machine", "write", "map", "plot", "out", "csv"),
    "profile",
  }

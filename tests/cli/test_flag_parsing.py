import pytest
from absl import flags
from ml_collections import config_flags

from alexnet_jax.cli import flag_parsing
from alexnet_jax.settings import fields

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
      "config", None, "text", flag_values=defined, sys_argv=argv
    )
    flags.mark_flag_as_required("config", flag_values=defined)
    flags.DEFINE_string("what", "step", "text", flag_values=defined)
    for name in NEW_FLAGS:
      flags.DEFINE_string(name, None, "text", flag_values=defined)
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
  assigned = write_config(f"config.{old} = 1")
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
  with pytest.raises(ValueError, match=f"line 4 of .* {name}, .* now called"):
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
  names = {to_layer(name) for name in flag_parsing._RENAMED_FIELDS.values()}
  assert names <= fields.FIELDS.keys()


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


def test_config_is_found_here_before_in_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = flag_parsing.find_config(f"{CONFIG}:imagenet")
  assert found.endswith(f"/{CONFIG}:imagenet") and found.startswith("/")
  (tmp_path / "configs").mkdir()
  (tmp_path / CONFIG).touch()
  assert flag_parsing.find_config(f"{CONFIG}:imagenet") == f"{CONFIG}:imagenet"

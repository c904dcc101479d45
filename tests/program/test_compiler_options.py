"""Options for XLA: what is known is used, what the user has set is left."""

import jax
import pytest

from alexnet_jax.partition import catalog
from alexnet_jax.program import compiled_step, compiler_options
from tests import build, fake

GPU = compiler_options.PRESETS["gpu"]
OFF = "XLA options for cpu: XLA's own (--xla_options=off)"
SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"


@pytest.fixture
def preset(monkeypatch):
  """Sets what is preset for the devices here."""
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)

  def set_preset(options):
    monkeypatch.setattr(compiler_options, "PRESETS", {"cpu": options})

  return set_preset


def choose(mode="auto"):
  return compiler_options.choose(jax.devices(), mode=mode)


def test_options_for_gpus_are_all_known_and_take_one_compilation(preset):
  preset(GPU)
  compiled = []

  def count(event, _, **__):
    compiled.extend([event] * event.endswith("backend_compile_duration"))

  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    found = choose()
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
  # The compilers for CPUs and for GPUs share their DebugOptions.
  assert found.used == GPU and found.unknown == ()
  assert len(compiled) == 1
  (line,) = found.lines()
  assert line.startswith(f"XLA options for cpu: {SCHEDULER}=True, ")
  assert "(--xla_options=off leaves them out)" in line


def test_unknown_option_is_left_out_and_named(preset):
  preset({"xla_no_such_option": True, **GPU, "xla_nor_this": 3})
  found = choose()
  assert found.used == GPU
  assert found.unknown == ("xla_no_such_option", "xla_nor_this")
  assert found.lines()[1] == (
    "XLA options left out: xla_no_such_option (the installed XLA has none), "
    "xla_nor_this (the installed XLA has none)"
  )


def test_value_that_the_compiler_refuses_is_an_error(preset):
  preset({SCHEDULER: "perhaps"})
  with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid bool"):
    choose()


@pytest.mark.parametrize("variable", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
@pytest.mark.parametrize("in_file", [False, True])
def test_option_that_the_user_has_set_stays(
  variable, in_file, preset, monkeypatch, tmp_path
):
  preset(GPU)
  flags = f"--xla_dump_to=x  --{SCHEDULER}=false\n"
  if in_file:  # XLA reads these too
    (tmp_path / "flags").write_text(flags)
    flags = str(tmp_path / "flags")
  monkeypatch.setenv(variable, flags)
  found = choose()
  assert found.used.keys() == GPU.keys() - {SCHEDULER}
  line = f"XLA options left out: {SCHEDULER} (set in {variable})"
  assert found.lines()[1] == line


def test_off_leaves_all_out_and_says_so(preset):
  preset(GPU)
  found = choose("off")
  assert not found.used and found.lines() == [OFF]


@pytest.mark.parametrize("kind", ["TPU v4", "a kind of its own"])
def test_preset_of_a_device_kind_goes_before_that_of_its_platform(
  kind, monkeypatch
):
  presets = compiler_options.PRESETS | {"a kind of its own": GPU}
  monkeypatch.setattr(compiler_options, "PRESETS", presets)
  monkeypatch.setattr(compiler_options, "find_unknown", lambda *_: ())
  device = fake.Device(0, platform="tpu", device_kind=kind)
  assert compiler_options.choose([device], mode="auto").used == presets[kind]


@pytest.mark.parametrize("mode", compiler_options.MODES)
def test_cpu_of_another_kind_has_no_options_and_no_line(mode, monkeypatch):
  monkeypatch.setattr("platform.machine", lambda: "arm64")
  found = choose(mode)
  assert not found.used and found.lines() == []


def test_installed_jaxlib_knows_the_options_for_x86(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setattr("platform.machine", lambda: "x86_64")
  found = choose()
  assert found.used == compiler_options.PRESETS["x86 cpu"]
  assert found.unknown == () and choose("off").lines() == [OFF]


def test_step_is_compiled_with_the_options():
  program = build.make_program(catalog.ONE_DEVICE)
  name = "xla_no_such_option"
  with pytest.raises(jax.errors.JaxRuntimeError, match=name) as caught:
    compiled_step.compile_step(program, options={name: True})
  assert "--xla_options=off" in caught.value.__notes__[0]


def test_options_of_a_run_are_the_default(monkeypatch):
  name = "xla_no_such_option"

  def choose(devices, *, mode):
    assert mode == "auto"
    return compiler_options.Options(platform="cpu", used={name: True})

  monkeypatch.setattr(compiler_options, "choose", choose)
  with pytest.raises(jax.errors.JaxRuntimeError, match=name):
    compiled_step.compile_step(build.make_program(catalog.ONE_DEVICE))

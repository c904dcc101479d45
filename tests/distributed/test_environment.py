"""Settings in the environment that change results or break a step."""

import re

import jax
import pytest

from alexnet_jax.distributed import environment
from alexnet_jax.partition import mesh
from tests import processes

# Settings of JAX that change neither results nor what a step sends, by what
# they are about. Each was set for a short run, where it concerns one.
NEUTRAL = re.compile(
  # Export, Pallas and operations that no network here has.
  r"jax2tf_.*|jax_export_.*|jax_serialization_version|jax_(pallas|mosaic)_.*"
  r"|jax_use_emit_pipeline_primitive|jax_ragged_dot_.*|jax_bcoo_.*|jax_use_magma"
  r"|jax_allow_f16_reductions|jax_refs_to_pins|jax_mutable_array_checks"
  # Which devices, and how processes connect: `cluster`, `mesh`.
  r"|jax_platforms|jax_platform_name|jax_xla_backend|jax_backend_target"
  r"|jax_(cuda|rocm|oneapi)_visible_devices|jax_pjrt_.*|jax_num_cpu_devices"
  r"|jax_cpu_collectives_implementation|jax_cpu_get_.*|jax_cross_host_.*"
  r"|jax_force_dcn_.*|jax_share_binary_.*|jax_check_proxy_envs|jax_mtls_.*"
  r"|jax_enable_(recoverability|preemption_service)|.*mock_(num_)?gpu.*"
  r"|jax_distributed_verify_.*|jax_raise_on_ppermute_sort_diff"
  # Logs, dumps, tracebacks, and what XLA writes of them.
  r"|jax_log.*|jax_dump_.*|jax_debug_log_modules|jax_distributed_debug"
  r"|jax_explain_cache_misses|jax_pprint_.*|jax_include_.*|jax_traceback_.*"
  r"|jax_tracer_error_.*|jax_send_traceback_.*|jax_source_.*|jax_hlo_source_.*"
  r"|jax_captured_.*|jax_compiler_detailed_.*"
  # Caches, memory, and when a call returns.
  r"|jax_(persistent|compilation)_cache_.*|jax_enable_compilation_cache"
  r"|jax_remove_custom_.*|jax_raise_persistent_.*|jax_pgle_.*"
  r"|jax_embedded_constants_max_bytes|jax_cpu_enable_async_dispatch"
  r"|jax_array_garbage_collection_guard|jax_thread_guard|jax_use_cpp_.*"
  # Other ways to trace to an equal program; checks that a step passes.
  r"|jax_(scan3|remat3|custom_[jv][vj]p3|use_rgv3|remat_barrier_.*)"
  r"|jax_use_simplified_jaxpr_constants|jax_threefry_gpu_kernel_lowering"
  r"|jax_enable_checks|jax_debug_key_reuse|jax_check_static_.*|check_vma"
  r"|jax_legacy_prng_key|jax_disallow_mesh_.*|jax_disable_vmap_.*"
  r"|jax_disable_bwd_checks|jax_experimental_unsafe_.*"
)


def find_settings() -> dict:
  """{name: value now} of every setting of the installed JAX."""
  # No public function lists them.
  return {
    name: holder.value for name, holder in jax.config._value_holders.items()
  }


def test_every_setting_of_jax_is_in_a_table_or_changes_nothing():
  tables = environment.FIXED, environment.REFUSED, environment.RECORDED
  names = [name for table in tables for name in table]
  assert len(names) == len(set(names))
  assert not list(filter(NEUTRAL.fullmatch, names))
  unknown = {
    name
    for name in find_settings()
    if name not in names and not NEUTRAL.fullmatch(name)
  }
  assert not unknown, "try these in a run, then list them"


def test_flags_are_compared_by_what_they_say(tmp_path):
  file = tmp_path / "flags"
  file.write_text("--xla_b=2\n--xla_a=1\n")
  for text in (
    "--xla_a=1 --xla_b=2",
    " --xla_b=1  --xla_a=1 --xla_b=2 --xla_dump_to=/tmp/x",
    "--xla_cpu_multi_thread_eigen=false '--xla_a=1' --xla_b=2",
    str(file),
  ):
    found = environment.describe_recorded({"XLA_FLAGS": text, "HOME": "/"})
    assert found.endswith("XLA_FLAGS=--xla_a=1 --xla_b=2")
  neutral = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  neutral["ONEDNN_VERBOSE"] = "1"
  assert environment.describe_recorded(
    neutral
  ) == environment.describe_recorded({})
  others = {"NVIDIA_TF32_OVERRIDE": "0", "DNNL_MAX_CPU_ISA": "AVX2"}
  found = environment.describe_recorded(others)
  assert "DNNL_MAX_CPU_ISA=AVX2" in found and "TF32_OVERRIDE=0" in found


def test_only_settings_with_another_meaning_are_named():
  same = {"JAX_ENABLE_X64": "False", "JAX_THREEFRY_PARTITIONABLE": "on"}
  assert not environment.describe_unused(same | {"JAX_LOG_COMPILES": "1"})
  assert environment.find_shared(same) == environment.find_shared({})
  others = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
  assert environment.describe_unused(others) == [
    "JAX_DEFAULT_PRNG_IMPL=rbg has no effect: a command sets it to "
    "threefry2x32",
    "JAX_ENABLE_X64=1 has no effect: a command sets it to False",
  ]
  shared = {**others, "XLA_FLAGS": "--xla_dump_to=/x --xla_a=1"}
  found = environment.find_shared(shared)
  assert found == {
    **environment.find_shared({}),
    **others,
    "XLA_FLAGS": "--xla_a=1",
  }


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    ("none", "XLA_FLAGS has 'none', expected flags as"),
    ("--xla_cpu_max_isa=AVX none", "XLA_FLAGS has 'none', expected flags as"),
    ("--xla_none=1", "XLA_FLAGS, .*: Unknown flag in XLA_FLAGS: --xla_none=1"),
    (
      "--xla_cpu_multi_thread_eigen=maybe",
      "XLA_FLAGS, .*: Couldn't interpret value maybe for flag xla_cpu_multi",
    ),
    ("--xla_cpu_max_isa=AVX", None),
  ],
)
def test_flags_that_xla_would_not_read_are_refused(
  flags, expected, monkeypatch
):
  monkeypatch.setenv("XLA_FLAGS", flags)
  monkeypatch.setattr(environment, "FIXED", {})  # other tests set their own
  if expected is None:
    environment.apply()
    return
  with pytest.raises(ValueError, match=expected):
    environment.apply()


def test_setting_that_no_step_works_with_is_refused():
  with (
    jax.disable_jit(),
    pytest.raises(ValueError, match="Unset JAX_DISABLE_JIT"),
  ):
    environment.apply()


# Where "the other bool" is not another value that JAX has.
OTHER_VALUES = {
  "jax_default_device": "cpu",
  "jax_default_prng_impl": "rbg",
  "jax_explicit_x64_dtypes": "error",
  "jax_numpy_dtype_promotion": "strict",
  "jax_numpy_rank_promotion": "raise",
  "jax_random_seed_offset": "3",
  "ignore": "raise",
  "allow": "disallow",
}


@pytest.mark.slow
def test_settings_that_a_command_fixes_change_no_bit(folder):
  """All of them at once, each with another value than that of the program."""
  variables = {
    name.upper(): OTHER_VALUES.get(name)
    or OTHER_VALUES.get(value, str(int(value is False)))
    for name, value in environment.FIXED.items()
  }
  found = []
  for name, chosen in (("plain", {}), ("other", variables)):
    tmp = folder(name)
    ended = processes.train(
      tmp,
      {"num_epochs": 1.0},
      config="data_parallel",
      variables=lambda _, chosen=chosen: chosen,
    )
    assert ended.out.count(" has no effect: ") == len(chosen)
    lines = processes.metrics(tmp)
    for line in lines:
      line.pop("images_per_second", None)
    found.append((lines, processes.read_state(tmp)))
  (plain, (step, state)), (other, (other_step, other_state)) = found
  assert plain == other and step == other_step
  assert {name: array.tobytes() for name, array in state.items()} == {
    name: array.tobytes() for name, array in other_state.items()
  }


def test_flag_that_simulated_devices_add_is_known():
  assert environment._OWN_FLAG == mesh._OWN_THREAD

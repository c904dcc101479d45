"""Compiled programs are kept, found again, and are the same."""

import pathlib
import re
import warnings

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from alexnet_jax.program import compilation_cache, compiled_step
from tests import build, processes

CONFIG = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
)
# Compiles in half the time.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder that JAX forgets afterwards."""
  for variable in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  before = {name: getattr(jax.config, name) for name in CONFIG}
  yield tmp_path / "cache"
  for name, value in before.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()


def compile_small(cache):
  """Compiles a program, as another process would; its line and result."""
  with cache.watch("the program") as found:
    compiled = jax.jit(lambda x: x * 3 + 1).lower(np.float32(0)).compile()
  (line,) = found.lines()
  assert float(compiled(np.float32(2))) == 7
  return line


@pytest.mark.slow
def test_step_from_the_cache_is_the_same_step(folder, key):
  cache = compilation_cache.open_cache(str(folder))
  lines, states, batch = [], [], build.make_batch(36)
  for _ in range(2):
    program = build.make_short_program("two_column")
    with cache.watch("the step") as found:
      compiled, audit = compiled_step.compile_step(program, options=QUICK)
    lines.extend(found.lines())
    assert audit.agrees
    state = program.init(key)
    before = jax.tree.leaves(state.parameters)
    places = find_places(before)
    state, _ = compiled(state, key, *build.put(program, batch))
    # Where they were, and no longer as they were.
    assert find_places(jax.tree.leaves(state.parameters)) == places
    assert all(leaf.is_deleted() for leaf in before)
    states.append(state)
  for line, expected in zip(
    lines,
    (
      rf"compiled in \d+\.\d s; it is kept in {folder} for the next start",
      rf"came from {folder} in \d+\.\d s(, which saves \d+\.\d s or more)?",
    ),
    strict=True,
  ):
    assert re.fullmatch(f"the step {expected}", line)
  jax.tree.map(np.testing.assert_array_equal, *states)


def find_places(arrays):
  return [
    shard.data.unsafe_buffer_pointer()
    for array in arrays
    for shard in array.addressable_shards
  ]


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_entry_that_was_cut_off_is_removed_and_made_anew(folder, kept):
  cache = compilation_cache.open_cache(str(folder))
  assert "it is kept in" in compile_small(cache)
  (entry,) = folder.glob("*-cache")
  data = entry.read_bytes()
  entry.write_bytes(data[: int(kept * len(data))])
  line = compile_small(cache)
  assert line.startswith("the program compiled in")
  assert line.endswith("was damaged, the next start makes a new one")
  assert "it is kept in" in compile_small(cache)
  assert "came from" in compile_small(cache)


def test_entry_that_cannot_be_read_or_written_is_one_line(folder):
  cache = compilation_cache.open_cache(str(folder))
  compile_small(cache)
  (entry,) = folder.glob("*-cache")
  entry.unlink()
  entry.mkdir()  # in its place
  assert "cannot be read: IsADirectoryError" in compile_small(cache)
  entry.rmdir()
  folder.rmdir()
  assert "cannot be written: FileNotFoundError" in compile_small(cache)


def test_other_warnings_are_passed_on(folder):
  cache = compilation_cache.open_cache(str(folder))
  with pytest.warns(UserWarning, match="of something else"):
    with cache.watch("nothing"):
      warnings.warn("of something else", stacklevel=1)


def test_folder_is_among_the_users_caches_and_for_this_user_alone(
  folder, monkeypatch
):
  home = folder.parent
  assert compilation_cache.open_cache(None).path == f"{home}/.cache/alexnet_jax"
  monkeypatch.setenv("XDG_CACHE_HOME", f"{home}/xdg")
  cache = compilation_cache.open_cache(None)
  assert cache.path == f"{home}/xdg/alexnet_jax"
  assert pathlib.Path(cache.path).stat().st_mode & 0o077 == 0
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{home}/jax")
  assert compilation_cache.open_cache(None).path == f"{home}/jax"
  assert compilation_cache.open_cache("~/flag").path == f"{home}/flag"


def test_folder_that_the_user_names_and_cannot_be_written_is_refused(
  folder, monkeypatch
):
  folder.touch()
  place = f"{folder}/below"
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", place)
  for flag, message in (
    (place, f"{place} cannot be .* Not a directory. Set"),
    (None, "Set JAX_COMPILATION_CACHE_DIR to a folder"),
  ):
    with pytest.raises(OSError, match=message):
      compilation_cache.open_cache(flag)


def test_default_folder_that_cannot_be_written_is_done_without(
  folder, monkeypatch
):
  folder.touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
  line = compile_small(compilation_cache.open_cache(None))
  assert line.endswith(
    f"nothing is kept: {folder}/alexnet_jax cannot be written: Not a directory "
    "(set --compilation_cache)"
  )


@pytest.mark.parametrize(
  ("choice", "attached", "lines"), [("off", True, 0), (None, False, 1)]
)
def test_nothing_is_kept_where_it_is_off_or_cannot_be_read_back(
  choice, attached, lines, folder, monkeypatch
):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
  cache = compilation_cache.open_cache(choice, attached=attached)
  with cache.watch("the program") as found:
    jax.jit(lambda x: x - 5).lower(np.float32(0)).compile()
  assert cache.path is None and not folder.exists()
  assert len(found.lines()) == lines


@pytest.mark.parametrize(
  ("backend", "choice", "kept"),
  [("cpu", "folder", False), ("gpu", None, False), ("gpu", "folder", True)],
)
def test_several_processes_keep_programs_where_all_of_them_find_them(
  backend, choice, kept, folder, monkeypatch
):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  cache = compilation_cache.open_cache(choice and str(folder))
  assert (cache.path is not None) == kept
  assert ("nothing is kept" in compile_small(cache)) == (not kept)


@pytest.mark.slow
def test_second_start_says_nothing_on_standard_error(tmp_path):
  said = []
  for _ in range(2):
    done = processes.run(
      [
        *("python", "-m", "alexnet_jax.inspect"),
        *("--config=configs/two_device.py", "--config.network.width=0.125"),
        f"--compilation_cache={tmp_path}",
      ],
      tmp_path,
    )
    assert (done.code, done.errors) == (0, ""), done.errors
    said.append(done.out)
  assert f"it is kept in {tmp_path} for the next start" in said[0]
  assert f"the step came from {tmp_path} in" in said[1]

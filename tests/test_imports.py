"""Who may import whom; the rules are in docs/design.md."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "alexnet_jax").rglob("*.py"))
# Folder -> the folders that it may import, beside itself.
PARTS = {
  **dict.fromkeys(("network", "data", "distributed"), ()),
  **dict.fromkeys(("partition", "optim"), ("network",)),
  "program": ("partition", "network", "optim", "distributed"),
  "settings": ("data", "network", "optim", "partition"),
  **dict.fromkeys(
    ("checkpoints", "cli"), ("program", "partition", "network", "distributed")
  ),
}
PARTS["training"] = tuple(name for name in PARTS if name != "cli")
COLLECTIVES = {
  *("psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute"),
  *("psum_scatter", "pcast", "pvary", "axis_index"),
}


def imports(path: pathlib.Path) -> set[str]:
  """Full names of the modules that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
      for inner in ast.walk(node):
        if isinstance(inner, ast.ImportFrom):
          names -= _names(inner)
          inner.names = []
    elif isinstance(node, ast.Import | ast.ImportFrom):
      names |= _names(node)
  return names


def _names(node: ast.Import | ast.ImportFrom) -> set[str]:
  if isinstance(node, ast.Import):
    return {alias.name for alias in node.names}
  return {f"{node.module}.{alias.name}" for alias in node.names}


def attributes(path: pathlib.Path) -> set[str]:
  """Dotted names that a file uses, as `jax.lax.psum`."""
  return {
    ast.unparse(node)
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute)
  }


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(ROOT)))
def file(request):
  return request.param


def test_file_imports_only_what_it_may(file):
  place = file.relative_to(ROOT / "alexnet_jax")
  room = place.parts[0]
  found = imports(file)
  ours = {
    name.removeprefix("alexnet_jax.")
    for name in found
    if name.startswith("alexnet_jax.")
  }
  # A command may import every part, and no other command.
  allowed = {room, *PARTS.get(room, PARTS)}
  assert {name.split(".")[0] for name in ours} <= allowed
  assert not [name for name in ours if name.endswith("__main__")]
  tops = {name.split(".")[0] for name in found}
  assert "tensorflow" not in tops
  place = str(place)
  if place in ("partition/layout.py", "network/wiring.py"):
    assert tops <= set(sys.stdlib_module_names) and not ours
  if place == "partition/check.py":
    assert ours <= {"partition.layout"}
  if room in PARTS and room not in ("cli", "settings", "training"):
    assert "ml_collections" not in tops
  if place not in ("checkpoints/checkpoint.py", "checkpoints/reader.py"):
    assert "orbax" not in tops


def test_only_the_partition_communicates(file):
  place = str(file.relative_to(ROOT / "alexnet_jax"))
  used = {name.split(".")[-1] for name in attributes(file)}
  # `timing.py` measures collectives; no step runs them. `silent.py` has what
  # stands in for them.
  allowed = ("exchange", "timing", "silent")
  if place not in [f"partition/{name}.py" for name in allowed]:
    assert not used & COLLECTIVES
  if not place.startswith("partition/"):
    assert not {"PartitionSpec", "NamedSharding"} & used
  if place != "program/program.py":
    assert "set_mesh" not in used


@pytest.mark.slow
def test_benchmarks_find_what_they_import():
  # One runs where PyTorch is.
  names = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
  names.remove("peer_torch")
  imported = ", ".join(f"benchmarks.{name}" for name in names)
  subprocess.run(
    [sys.executable, "-c", f"import {imported}"], cwd=ROOT, check=True
  )


def test_configs_import_only_configs():
  for path in (ROOT / "configs").glob("*.py"):
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops <= {"ml_collections", "configs", "alexnet_jax"}, path

"""Who may import whom; docs/design.md has the rules in words."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "alexnet_jax"
# Folder -> the folders that it may import, besides itself.
PARTS = {
  **dict.fromkeys(("network", "data", "distributed"), ()),
  **dict.fromkeys(("partition", "optim"), ("network",)),
  "planner": ("network", "partition"),
  "program": ("partition", "network", "optim", "distributed"),
  "settings": ("data", "network", "optim", "partition", "planner"),
  **dict.fromkeys(
    ("checkpoints", "cli"), ("program", "partition", "network", "distributed")
  ),
}
PARTS["cli"] += ("planner",)
PARTS["figures"] = tuple(
  name for name in PARTS if name not in ("cli", "optim", "settings")
)
PARTS["training"] = tuple(name for name in PARTS if name != "cli")
# What only some files may import or use: a pattern of full names, and these.
RESERVED = {
  r"(psum|pmean|pmax|pmin|all_gather|all_to_all|ppermute|psum_scatter|pcast"
  # timing measures collectives; no step runs them.
  r"|pvary|axis_index)": ("partition/exchange", "partition/timing"),
  r"(PartitionSpec|NamedSharding)": ("partition/",),
  r"set_mesh": ("program/program",),
  r"orbax": ("checkpoints/checkpoint", "checkpoints/reader"),
  r"tensorstore": ("checkpoints/reader",),
  r"_src": ("distributed/",),  # of JAX
  r"tensorflow": (),
}


def find_imports(tree: ast.Module) -> set[str]:
  """Full names of what a file imports."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def find_words(tree: ast.Module) -> set[str]:
  """Each part of the names that a file imports, and every attribute it uses."""
  attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
  return attributes.union(*(name.split(".") for name in find_imports(tree)))


# "partition/mesh" -> its syntax tree.
TREES = {
  path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(
    path.read_text()
  )
  for path in sorted(PACKAGE.rglob("*.py"))
}
# -> the modules of the package that it imports, named likewise.
GRAPH = {
  module: {
    name.removeprefix("alexnet_jax.").replace(".", "/")
    for name in find_imports(tree)
    if name.startswith("alexnet_jax.")
  }
  for module, tree in TREES.items()
}


@pytest.mark.parametrize("module", TREES)
def test_module_imports_and_uses_only_what_it_may(module):
  room = module.split("/")[0]
  # A command may import every part, and no other command.
  allowed = {room, *PARTS.get(room, PARTS)}
  assert {name.split("/")[0] for name in GRAPH[module]} <= allowed
  assert GRAPH[module] <= TREES.keys(), "modules are imported, not their names"
  assert not [name for name in GRAPH[module] if name.endswith("__main__")]
  if module in ("partition/layout", "network/wiring"):
    tops = {name.split(".")[0] for name in find_imports(TREES[module])}
    tops -= {"alexnet_jax"}
    assert tops <= set(sys.stdlib_module_names)
  if module in ("partition/layout", "partition/check", "network/wiring"):
    assert GRAPH[module] <= {"partition/layout", "network/wiring"}
  words = find_words(TREES[module])
  for pattern, places in RESERVED.items():
    if not any(
      module.startswith(place) if place.endswith("/") else module == place
      for place in places
    ):
      assert not [word for word in words if re.fullmatch(pattern, word)]
  if room in PARTS and room not in ("cli", "settings", "training"):
    assert "ml_collections" not in words


def test_package_stays_easy_to_survey():
  graphlib.TopologicalSorter(GRAPH).prepare()  # a circle is an error
  assert sum(map(len, GRAPH.values())) <= 880
  modules = [name for name in TREES if not name.endswith("__init__")]
  assert len(modules) <= 192
  top = {name for name in modules if "/" not in name} - {"__main__"}
  assert len(top) <= 4
  # Each module is a command, is imported, or is started by its name.
  texts = {name: (PACKAGE / f"{name}.py").read_text() for name in modules}
  unused = set(modules).difference(top, *GRAPH.values())
  unused = {name for name in unused if not name.endswith("__main__")}
  started = re.findall(r'"alexnet_jax\.([\w.]+)"', "".join(texts.values()))
  assert unused <= {name.replace(".", "/") for name in started}
  # Few know of members of an ensemble; in data/, a member is that of a tar.
  found = [
    name
    for name in modules
    if not name.startswith("data/")
    and re.search(r"ensemble|\bmember", texts[name], re.IGNORECASE)
  ]
  assert len(found) <= 13, found


def test_training_starts_without_what_draws():
  reached, new = set(), {"main"}
  while new:
    reached |= new
    new = set().union(*(GRAPH[module] for module in new)) - reached
  assert "figures/kernels" in reached  # images of TensorBoard
  for module in reached:
    # Imports inside functions are for what training does not call.
    first = ast.Module(
      [
        n
        for n in TREES[module].body
        if isinstance(n, ast.Import | ast.ImportFrom)
      ],
      type_ignores=[],
    )
    tops = {name.split(".")[0] for name in find_imports(first)}
    assert not tops & {"matplotlib", "scipy", "jinja2"}, module


@pytest.mark.slow
def test_benchmarks_find_what_they_import():
  names = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if path.name != "__init__.py"
  }
  names.remove("benchmarks.peers.torch_worker")  # runs where PyTorch is
  subprocess.run(
    [sys.executable, "-c", f"import {', '.join(names)}"], cwd=ROOT, check=True
  )


def test_configs_import_only_configs():
  for path in (ROOT / "configs").glob("*.py"):
    names = find_imports(ast.parse(path.read_text()))
    tops = {name.split(".")[0] for name in names}
    assert tops <= {"ml_collections", "configs", "alexnet_jax"}, path

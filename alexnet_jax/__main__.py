"""Lists the commands: python -m alexnet_jax"""

import ast
import pathlib
from collections.abc import Iterator

_PACKAGE = pathlib.Path(__file__).parent


def find_commands() -> Iterator[tuple[str, str]]:
  """Yields the name and the first docstring line of each, without importing."""
  files = [*_PACKAGE.glob("*.py"), *_PACKAGE.glob("*/__main__.py")]
  for file in sorted(files, key=_find_name):
    if file.parent != _PACKAGE or not file.name.startswith("__"):
      text = ast.get_docstring(ast.parse(file.read_text())) or ""
      yield _find_name(file), text.partition("\n")[0]


def _find_name(file: pathlib.Path) -> str:
  return file.stem if file.parent == _PACKAGE else file.parent.name


if __name__ == "__main__":
  print("python -m alexnet_jax.COMMAND --help shows the flags of a command.\n")
  for command, line in find_commands():
    print(f"  {command:<12}{line}")

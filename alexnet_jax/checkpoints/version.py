"""What code this is: the version, and the revision where it is a checkout."""

from __future__ import annotations

import importlib.metadata
import pathlib
import tomllib

import jax

_ROOT = pathlib.Path(__file__).parents[2]


def find() -> dict[str, str | None]:
  """Versions of this package and of JAX; starts no program.

  Returns:
    {"alexnet_jax", "revision", "jax"}; the revision is the commit that the
    files were checked out at, None where they are in no checkout.

  Raises:
    ValueError: the project file does not say it.
  """
  return {
    "alexnet_jax": _find_version(),
    "revision": find_revision(_ROOT),
    "jax": jax.__version__,
  }


def _find_version() -> str | None:
  project = _ROOT / "pyproject.toml"
  if project.exists():  # before any older one that is installed too
    try:
      return tomllib.loads(project.read_text())["project"]["version"]
    except (ValueError, KeyError) as error:
      raise ValueError(
        f"{str(project)!r} says no version: {error}. Restore it."
      ) from error
  try:
    return importlib.metadata.version("alexnet_jax")
  except importlib.metadata.PackageNotFoundError:
    return None


def find_revision(root: pathlib.Path) -> str | None:
  """The commit that a checkout is at; None where there is none."""
  folder = root / ".git"
  try:
    if folder.is_file():  # of a worktree: "gitdir: PATH"
      folder = pathlib.Path(folder.read_text().split(":", 1)[1].strip())
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
      return head
    name = head.split(":", 1)[1].strip()
    common = folder / "commondir"
    if common.exists():
      folder = folder / common.read_text().strip()
    if (folder / name).exists():
      return (folder / name).read_text().strip()
    for line in (folder / "packed-refs").read_text().splitlines():
      if line.endswith(f" {name}"):
        return line.split()[0]
  except (OSError, ValueError, IndexError):
    pass  # no checkout, or one of a kind that git alone can read
  return None

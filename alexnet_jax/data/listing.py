"""The files of both tars, in the order of the records, and kept on the disk.

A listing takes a header for each of a million files, so a preparation that is
started again reads it from where the first start has left it.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Mapping

from alexnet_jax.data import ilsvrc

# {split: its files, in the order of the records}.
Files = dict[str, list[ilsvrc.Member]]

_NAME = "files.json"
_THREADS = 16


def make(tars: Mapping[str, str]) -> Files:
  """Lists both tars; the order is that of a hash of the name: shuffled.

  Args:
    tars: {split: path}, from `ilsvrc.find_tars`.

  Raises:
    ValueError: a tar is not what it should be.
  """
  files = {}
  # Threads: most of the time is waiting for the disk.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for split, path in tars.items():
      parts = ilsvrc.find_parts(split, path)
      listed = [
        member
        for found in pool.map(ilsvrc.list_members, parts)
        for member in found
      ]
      ilsvrc.check_complete(split, path, listed)
      files[split] = sorted(listed, key=_shuffled)
  return files


def load(folder: str, made_from: Mapping[str, object]) -> Files | None:
  """The files as an earlier start has listed them; None at the first start.

  Args:
    folder: of the unfinished set.
    made_from: the tars and settings that the shards depend on.

  Raises:
    ValueError: the earlier start had others.
  """
  try:
    with open(os.path.join(folder, _NAME)) as file:
      stored = json.load(file)
  except FileNotFoundError:
    return None
  differences = [
    f"{name}: {stored['made_from'].get(name)} there, {value} here"
    for name, value in made_from.items()
    if stored["made_from"].get(name) != value
  ]
  if differences:
    raise ValueError(
      f"the unfinished set in {folder} was begun with others "
      f"({'; '.join(differences)}). Set them back to go on, or delete that "
      "folder to begin anew."
    )
  return {
    split: [ilsvrc.Member(*fields) for fields in listed]
    for split, listed in stored["files"].items()
  }


def save(folder: str, made_from: Mapping[str, object], files: Files) -> None:
  """Keeps a listing for `load`."""
  path = os.path.join(folder, _NAME)
  if not os.path.exists(path):
    with open(f"{path}.partial", "w") as file:
      json.dump({"made_from": made_from, "files": files}, file)
    os.replace(f"{path}.partial", path)


def _shuffled(member: ilsvrc.Member) -> bytes:
  return hashlib.blake2b(member.name.encode(), digest_size=8).digest()

"""Writes workdirs of runs that have reports and no checkpoint."""

from __future__ import annotations

import json

import numpy as np

from alexnet_jax.checkpoints import workdir as workdir_lib
from configs import default


def write(path, lines=None, **fields):
  """Writes the workdir of a run as far as its curves need it."""
  config = default.get_config("digits")
  config.update_from_flattened_dict(fields)
  path.mkdir(parents=True)
  found = {"training_images": 1498, "dataset": path.name, "statistics": None}
  text = json.dumps(workdir_lib.flatten_config(config.to_dict(), found))
  (path / "config.json").write_text(text)
  if lines is None:
    lines = make_lines(fields.get("optimizer.learning_rate", 0.01))
  (path / "metrics.jsonl").write_text("".join(f"{x}\n" for x in lines))


def make_lines(rate, steps=range(10, 60, 10), **changes):
  """Makes the lines of a run whose error falls with its rate."""
  lines = []
  for step in steps:
    values = {
      **{"step": step, "epoch": step / 7, "elapsed_seconds": step / 3},
      "images_seen": 64 * step,
    } | changes
    loss = {"training_loss": float(np.exp(-step * rate)), "learning_rate": rate}
    lines.append(json.dumps(values | loss))
    if step % 20 == 0:
      error = {"validation_loss": 1.5, "validation_top1_error": 1 / step}
      lines.append(json.dumps(values | error))
  return lines

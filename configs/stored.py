"""The config of an earlier run, from its workdir; no other file is needed.

    python -m alexnet_jax.main --workdir=runs/demo
    python -m alexnet_jax.inspect --config=runs/demo

Resumes a run whose config file has changed or is gone, and shows its network
and layout. A workdir stands for this file, --config=configs/stored.py:WORKDIR,
wherever a config is asked for; single fields can be set as in any config.
"""

import ml_collections

from alexnet_jax.training import trained_run
from configs import default


def get_config(workdir: str) -> ml_collections.ConfigDict:
  config, _ = trained_run.read_config(workdir, default.get_config())
  return config

#!/usr/bin/env bash
# One process with all GPUs of this machine.
#
# Needs: JAX with GPU support, as `pip install "jax[cuda13]"`. Without a GPU it
#        fails; alexnet_jax.main alone would simulate devices.
# Call:  launch/gpu.sh --config=configs/two_device.py:imagenet
#        CUDA_VISIBLE_DEVICES=0,1 selects some of them, PYTHON the interpreter.
# Ends:  with the training (0), or on TERM: saves, and ends with 75.

"${PYTHON:-python}" -c 'import jax; jax.devices("gpu")' || exit
exec "${PYTHON:-python}" -m "alexnet_jax.${MODULE:-main}" \
  --distributed=off "$@"

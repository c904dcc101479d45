#!/usr/bin/env bash
# One process with all GPUs of this machine.
#
# Needs: a JAX that finds them, as `pip install "jax[cuda13]"`. Where it finds
#        none it is an error; alexnet_jax.main alone would simulate devices.
# Call:  launch/gpu.sh --config=configs/two_device.py:imagenet
#        CUDA_VISIBLE_DEVICES=0,1 takes some of them, PYTHON is the interpreter.
# Ends:  with the training, or saves on TERM and ends with 75.

"${PYTHON:-python}" -c 'import jax; jax.devices("gpu")' || exit
exec "${PYTHON:-python}" -m "alexnet_jax.${MODULE:-main}" \
  --distributed=off "$@"

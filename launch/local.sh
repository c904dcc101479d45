#!/usr/bin/env bash
# Several processes on this machine, each with simulated devices of its own.
#
# They do the same as on several hosts: find each other, share one mesh, and
# communicate over the network, here the loopback device.
#
# Needs: nothing but this project's Python environment.
# Call:  launch/local.sh 2 2 --config=configs/four_device.py --workdir=runs/two
#        2 processes with 2 devices each, then any flags of alexnet_jax.main.
#        PORT is the port of process 0, PYTHON the interpreter.
# Ends:  when all processes have ended, with the lowest of their codes that is
#        not 0. Ctrl-C and TERM reach all of them: they save and end with 75.

set -u
processes=${1:?"say how many processes: launch/local.sh 2 2 --config=..."}
devices=${2:?"say how many devices in each: launch/local.sh 2 2 --config=..."}
shift 2

# Below the ports that systems assign by themselves; another one for each run.
export JAX_COORDINATOR_ADDRESS=localhost:${PORT:-$((10000 + $$ % 20000))}
export JAX_NUM_PROCESSES=$processes

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM HUP
for ((process = 0; process < processes; process++)); do
  JAX_PROCESS_ID=$process "${PYTHON:-python}" -m "alexnet_jax.${MODULE:-main}" \
    --distributed=env --simulate_devices="$devices" "$@" </dev/null &
  pids+=($!)
done

lowest=0
for pid in "${pids[@]}"; do
  # A signal to this script ends `wait`, not the process.
  while wait "$pid"; code=$?; kill -0 "$pid" 2>/dev/null; do :; done
  if ((code != 0 && (lowest == 0 || code < lowest))); then lowest=$code; fi
done
exit "$lowest"

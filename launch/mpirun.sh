#!/usr/bin/env bash
# As many processes as Open MPI starts, on one or many hosts.
#
# Open MPI only starts and numbers them; they communicate through JAX's own
# libraries.
#
# Needs: Open MPI 4 or 5, and this folder and --workdir under the same path on
#        every host. Start it on the first of the hosts.
# Call:  launch/mpirun.sh 4 --config=configs/four_device.py:imagenet
#        4 processes; HOSTS=one:2,two:2 sets the hosts, PYTHON the interpreter.
# Ends:  with the training (0), or with the code of the first process that
#        fails, which ends all others. TERM to any of the processes: all save
#        (75). Ctrl-C, or TERM to mpirun: Open MPI 4 forwards TERM after 20
#        seconds and gives 20 to save; 5 does not wait.

processes=${1:?"say how many processes: launch/mpirun.sh 2 --config=..."}
shift
# Open MPI gives processes a terminal even if its own output is a file.
[[ -t 1 ]] || export TTY_COMPATIBLE=0
: "${OMPI_MCA_odls_base_sigkill_timeout:=20}"
export OMPI_MCA_odls_base_sigkill_timeout
# Open MPI passes only its own variables to other hosts.
passed=()
for name in "${!JAX_@}" "${!XLA_@}" "${!TTY_COMPATIBLE@}"; do
  passed+=(-x "$name")
done
exec mpirun -np "$processes" ${HOSTS:+--host "$HOSTS"} --bind-to none \
  "${passed[@]}" \
  "${PYTHON:-python}" -m "alexnet_jax.${MODULE:-main}" "$@"

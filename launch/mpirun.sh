#!/usr/bin/env bash
# As many processes as Open MPI starts, on one or many hosts.
#
# Open MPI only starts them and says who they are; what they send goes through
# JAX's own libraries.
#
# Needs: Open MPI 4 or 5, this folder and --workdir at the same place on every
#        host, and to be started on the first of the hosts.
# Call:  launch/mpirun.sh 4 --config=configs/four_device.py:imagenet
#        4 processes; HOSTS=one:2,two:2 says where, PYTHON is the interpreter.
# Ends:  with the training (0), or with the code of the first process that ends
#        otherwise, and with it all others. A TERM to any of the processes: all
#        save (75). Ctrl-C, or TERM to mpirun: Open MPI 4 passes TERM on after
#        20 seconds and gives 20 to save; 5 does not wait.

processes=${1:?"say how many processes: launch/mpirun.sh 2 --config=..."}
shift
# Open MPI gives processes a terminal, also where it writes to a file itself.
[[ -t 1 ]] || export TTY_COMPATIBLE=0
: "${OMPI_MCA_odls_base_sigkill_timeout:=20}"
export OMPI_MCA_odls_base_sigkill_timeout
# Open MPI takes only its own variables to other hosts.
taken=()
for name in "${!JAX_@}" "${!XLA_@}" "${!TTY_COMPATIBLE@}"; do
  taken+=(-x "$name")
done
exec mpirun -np "$processes" ${HOSTS:+--host "$HOSTS"} --bind-to none \
  "${taken[@]}" \
  "${PYTHON:-python}" -m "alexnet_jax.${MODULE:-main}" "$@"

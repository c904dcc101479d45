#!/usr/bin/env bash
# A TPU slice on Google Cloud: creates it, sets it up, trains on all its hosts.
#
# Uses the committed state of this folder. The run continues if this script or
# the connection to the slice is interrupted. After its end, the same command
# resumes it from its checkpoint.
#
# Needs: gcloud with a project and the right to make TPUs, up to v6e (for newer
#        ones: jobset.yaml). A folder that all hosts share, for --workdir and
#        --data_dir: MOUNT is the shell command that mounts it on each, as
#        MOUNT="mountpoint -q /mnt || sudo mount 10.0.0.2:/runs /mnt".
# Call:  launch/tpu_slice.sh NAME ZONE v5litepod-16 v2-alpha-tpuv5-lite \
#          --config=configs/four_device.py:imagenet --workdir=/mnt/run \
#          --config.layout.mesh.data=8
#        CREATE has more flags to create it with, as CREATE=--spot.
# Ends:  with the code of worker 0. Ctrl-C only stops the output. The first
#        command below stops the run, the second deletes the slice, which costs
#        until then:
#          gcloud compute tpus tpu-vm ssh NAME --zone=ZONE \
#            --command='pkill -TERM -f alexnet_jax.main'
#          gcloud compute tpus tpu-vm delete NAME --zone=ZONE

set -euo pipefail
name=${1:?"say its name"} zone=${2:?"say its zone"}
accelerator=${3:?"say its type, as v5litepod-16"}
version=${4:?"say the version of its software, as v2-alpha-tpuv5-lite"}
shift 4
tpu=(gcloud compute tpus tpu-vm)

"${tpu[@]}" describe "$name" --zone="$zone" >/dev/null 2>&1 ||
  "${tpu[@]}" create "$name" --zone="$zone" --accelerator-type="$accelerator" \
    --version="$version" ${CREATE:+$CREATE}

code=$(mktemp -d)
trap 'rm -r "$code"' EXIT
git archive --prefix=alexnet_jax/ --output="$code/alexnet_jax.tar.gz" HEAD
"${tpu[@]}" scp "$code/alexnet_jax.tar.gz" "$name:" --zone="$zone" --worker=all

# Their own Python may be older than the required 3.11.
"${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="
  set -e
  ${MOUNT:-:}
  tar -xzf alexnet_jax.tar.gz
  cd alexnet_jax
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python=3.12
  python3 -m uv pip install --quiet -r requirements-tpu.txt"

flags=$(printf '%q ' "$@")
"${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="
  cd alexnet_jax
  rm -f run.code
  cat > run.sh <<'END'
    .venv/bin/python -m alexnet_jax.${MODULE:-main} --start_timeout_seconds=300 $flags
    echo \$? > run.code
END
  nohup bash run.sh > run.log 2>&1 < /dev/null &
  echo \$! > run.pid"

"${tpu[@]}" ssh "$name" --zone="$zone" --worker=0 --command="
  cd alexnet_jax
  tail --pid=\$(cat run.pid) --lines=+1 --follow=name run.log
  exit \$(cat run.code)"

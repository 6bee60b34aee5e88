#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, and starts again after a failure of one of them.
#
#     launch/tpu_pod.sh my-tpu europe-west4-b \
#         --config configs/imagenet128.py:feat32 --workdir /mnt/bucket/feat32
#
# Needs gcloud on this machine, and this repository with its requirements and jax[tpu] in
# ~/sagan_jax on every host. The workdir is a folder that the first host can write to, as a mounted
# bucket.
set -eu
if [ $# -lt 3 ]; then
    echo 'usage: launch/tpu_pod.sh NAME ZONE --config FILE --workdir FOLDER …' >&2
    exit 2
fi
name=$1 zone=$2
shift 2
command=$(printf ' %q' python3 -u -m sagan_jax.main --config.distributed.coordinator=auto "$@")
# What an earlier start may have left running would hold the TPU.
command="pkill -f 'sagan_jax[.]main'; cd ~/sagan_jax && exec$command"
exec "$(dirname "$0")/until_done.sh" gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" \
    --worker=all --command "$command"

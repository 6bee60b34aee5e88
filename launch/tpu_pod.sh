#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice; restarts all when one of them fails.
#
#     launch/tpu_pod.sh my-tpu europe-west4-b \
#         --config configs/imagenet128.py:feat32 --config.dataset.source_dir=/mnt/bucket/imagenet \
#         --workdir /mnt/bucket/feat32
#
# Needs gcloud on this machine, and on every host this repository in ~/sagan_jax with an environment in
# ~/sagan_jax/.venv, see docs/clusters.md. PYTHON is the Python of this machine; the hosts find theirs
# as python.sh says. The first host writes to the workdir, for example in a mounted bucket.
set -eu
if [ $# -lt 3 ]; then
    echo 'usage: launch/tpu_pod.sh NAME ZONE --config FILE --workdir FOLDER …' >&2
    exit 2
fi
name=$1 zone=$2
shift 2
workdir=''
for argument in "$@"; do
    case $argument in --workdir=*) workdir=${argument#*=} ;; esac
    [ "${previous:-}" != --workdir ] || workdir=$argument
    previous=$argument
done
if [ -z "$workdir" ]; then
    echo 'error: No --workdir was given: try --workdir /mnt/bucket/run.' >&2
    exit 2
fi

# Runs on each host. A file named after the workdir holds the process id of the run. A start reads it
# to end the process that an earlier start of the same run left, which would still hold the TPU; it
# ends no other run.
# shellcheck disable=SC2016 # the shell of the host expands it
start='
cd ~/sagan_jax || exit
workdir=$0
note=$HOME/.sagan_jax-$(printf %s "$workdir" | cksum | cut -d" " -f1).pid
before=$(cat "$note" 2>/dev/null)
if [ -n "$before" ] &&
    grep -zqsxF -e "$workdir" -e "--workdir=$workdir" "/proc/$before/cmdline"; then
    kill "$before"
    timeout 60 tail --pid="$before" -f /dev/null || kill -KILL "$before"
fi
echo $$ >"$note"
. launch/python.sh
exec "$PYTHON" "$@"
'
command=$(printf ' %q' bash -c "$start" "$workdir" \
    -u -m sagan_jax.main "$@" --config.distributed.coordinator=auto) # a key comes after --config
cd "$(dirname "$0")/.."
. launch/python.sh
exec "$PYTHON" -m launch.until_done -- gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" \
    --worker=all --command "${command# }"

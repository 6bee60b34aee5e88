#!/usr/bin/env bash
# Trains on several nodes with one process per GPU; survives preemption.
#
#     sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 launch/slurm.sh \
#         --config configs/imagenet128.py:feat32 --config.dataset.source_dir=/shared/imagenet \
#         --workdir /shared/runs/feat32
#
# Submit it from this repository. All nodes need this repository with its environment (python.sh says
# which Python is used) and the prepared data (--config.dataset.data_dir) at the same paths; the first
# node writes to the workdir. Give --gpus-per-node, not --gpus-per-task, so that each process can
# choose its GPU. Two minutes before the time limit, and on preemption, the run saves its step and the
# job returns to the queue.
#SBATCH --job-name=sagan_jax
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.txt
set -u
cd "${SLURM_SUBMIT_DIR:?start this script with sbatch}" || exit
. launch/python.sh

# The job step gets its signals from this script only, each once.
set -m
child='' asked='' passed=''
pass_on() {
    asked=$1
    [ -z "$child" ] || {
        passed=1
        kill "-$1" "$child"
    }
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on HUP' HUP
srun --kill-on-bad-exit=1 --label "$PYTHON" -u -m sagan_jax.main \
    "$@" --config.distributed.coordinator=auto & # a key comes after --config
child=$!
# Pass on a signal that arrived before the job step started.
[ -z "$asked" ] || [ -n "$passed" ] || kill "-$asked" "$child"
wait "$child"
status=$?
# A trapped signal ends `wait` before the job step ends.
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done

case $status in 0 | 2) exit $status ;; esac # done, or an error of the user's
# The run was interrupted or a process failed, and it can resume from its last checkpoint. Only SLURM
# can assign other nodes, so the job returns to the queue instead of using launch.until_done. The
# number of restarts is limited, because other failures repeat.
if [ -n "$asked" ] || [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status

#!/usr/bin/env bash
# A run over nodes, with a process for each GPU, that survives preemption:
#
#     sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 launch/slurm.sh \
#         --config configs/imagenet128.py:feat32 --workdir /shared/runs/feat32
#
# Submit it from this repository, which must be there on all nodes, as must the prepared data
# (--config.dataset.data_dir); the workdir is a folder that the first node can write to. Give
# --gpus-per-node and not --gpus-per-task, so that each process can choose its GPU. Two minutes
# before its time is over, or when it is preempted, the run saves its step, and the job goes back
# into the queue.
#SBATCH --job-name=sagan_jax
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.txt
set -u
cd "${SLURM_SUBMIT_DIR:?give this script to sbatch}" || exit

# The step gets signals from here alone, and each is passed on once.
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
srun --kill-on-bad-exit=1 --label python -u -m sagan_jax.main \
    --config.distributed.coordinator=auto "$@" &
child=$!
# A signal that came before the step was there.
[ -z "$asked" ] || [ -n "$passed" ] || kill "-$asked" "$child"
wait "$child"
status=$?
# A trapped signal ends `wait` before the step has ended.
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done

case $status in 0 | 2) exit $status ;; esac # done, or given something wrong
# Asked to end, or a process failed; the last checkpoint is there. Only SLURM can find other nodes
# for a run, so the job goes back into the queue instead of using launch.until_done. What fails for
# no such reason fails again, so the number of restarts is limited.
if [ -n "$asked" ] || [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status

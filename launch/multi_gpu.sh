#!/usr/bin/env bash
# Trains on all GPUs of this machine, in one process; restarts after a failure.
#
#     launch/multi_gpu.sh --config configs/imagenet128.py:feat32 \
#         --config.dataset.source_dir=IMAGENET --workdir runs/feat32
#
# CUDA_VISIBLE_DEVICES=0,1 selects some of the GPUs. python.sh says which Python is used.
set -eu
cd "$(dirname "$0")/.."
. launch/python.sh
"$PYTHON" - <<'CHECK'
from sagan_jax.system import ending
ending.prepare()
import jax
if jax.default_backend() != 'gpu':
    raise SystemExit(
        "error: JAX sees no GPU: check nvidia-smi, and install 'jax[cuda13]', or 'jax[cuda12]' for a "
        'GPU before Turing or a driver before 580.'
    )
CHECK
exec "$PYTHON" -m launch.until_done -- "$PYTHON" -m sagan_jax.main "$@"

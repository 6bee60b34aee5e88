#!/usr/bin/env bash
# Trains on all GPUs of this machine, in one process; restarts after a failure.
#
#     launch/multi_gpu.sh --config configs/imagenet128.py:feat32 --workdir runs/feat32
#
# CUDA_VISIBLE_DEVICES=0,1 selects some of the GPUs.
set -eu
cd "$(dirname "$0")/.."
python - <<'PYTHON'
from sagan_jax.system import ending
ending.prepare()
import jax
if jax.default_backend() != 'gpu':
    raise SystemExit("error: JAX sees no GPU: pip install 'jax[cuda13]', and check nvidia-smi.")
PYTHON
exec python -m launch.until_done -- python -m sagan_jax.main "$@"

"""The quickstart learns what the README promises, over three seeds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OF_TESTS = {'JAX_NUM_CPU_DEVICES', 'XLA_FLAGS'}  # what conftest.py sets for tiny networks


@pytest.mark.thorough
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_the_quickstart_ends_well(seed, tmp_path):
    """The bounds are wider than the scores that docs/scores.md has for these seeds."""
    command = [sys.executable, '-m', 'sagan_jax.main', '--config', 'configs/quickstart.py']
    command += ['--workdir', str(tmp_path), f'--config.seed={seed}']
    environment = {key: value for key, value in os.environ.items() if key not in OF_TESTS}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    last = max((tmp_path / 'evaluation').iterdir())
    scores = {row['name']: row['value'] for row in json.loads(last.read_text())}
    assert scores['in_domain_fid2k_train'] <= 6
    assert scores['in_domain_class_share2k'] >= 0.95
    assert scores['colour_agreement2k'] >= 0.95
    # Of 12 hues; the data have 11.9 in each class.
    assert scores['hue_variety2k'] >= 10
    assert scores['hue_variety_min2k'] >= 9

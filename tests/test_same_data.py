"""The same images from different files give the same run, bit for bit, without TensorFlow."""

import json

import jax
import numpy as np
import pytest

from sagan_jax.run import checkpoints
from sagan_jax.state import create_state
from sagan_jax.train import train
from tests import tiny
from tests.data import hub_server
from tests.data.test_hub_images import as_cifar10

STEPS = 20


@pytest.mark.thorough
def test_cifar10_from_the_archive_and_from_parquet_is_one_run(tmp_path, monkeypatch):
    hub_server.hide_tensorflow(monkeypatch)
    found = {}
    with hub_server.serving(monkeypatch) as hub:
        for kind, keys in as_cifar10(hub, monkeypatch, tmp_path).items():
            config = tiny.config(
                num_train_steps=STEPS,
                sample_every=STEPS,
                checkpoint_every=STEPS,
                dataset__data_dir=str(tmp_path / 'prepared'),
                dataset__num_classes=10,
                **{f'dataset__{key}': value for key, value in keys.items()},
            )
            workdir = tmp_path / kind
            train(config.lock(), workdir)
            manager = checkpoints.open_manager(workdir / 'checkpoints')
            state = checkpoints.restore_newest(manager, create_state(config), config)
            manager.close()
            assert int(state.step) == STEPS
            lines = (workdir / 'metrics.jsonl').read_text().splitlines()
            record = json.loads((workdir / 'config.json').read_text())['data']
            found[kind] = {
                'state': [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)],
                'losses': [
                    {key: value for key, value in json.loads(line).items() if 'loss' in key}
                    for line in lines
                ],
                'samples': (workdir / 'samples' / f'{STEPS:06}.png').read_bytes(),
                'data': record | {'name': ''},
            }
    assert len(found['archive']['losses']) == STEPS
    assert all(found['archive']['losses'])
    assert found['archive'] == found['parquet']

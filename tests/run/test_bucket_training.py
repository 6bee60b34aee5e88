"""A run in a bucket that is killed, and resumed on other machines, ends as one that is not."""

import collections
import os
import random
import re
import signal

import pytest

from sagan_jax.run import bucket
from sagan_jax.system import buckets
from tests import test_chaos, tiny
from tests.run import bucket_servers

BUCKET = 's3://bucket/runs/killed'

# The program, with changes copied all the time, and each request to the bucket in a file.
PROGRAM = """
import os, runpy
from sagan_jax.run import bucket
from sagan_jax.system import buckets

def asking(kind, ask):
    def counted(name, *content):
        with open(os.environ['REQUESTS'], 'a') as file:
            file.write(f'{kind} {name}\\n')
        return ask(name, *content)
    return counted

def open_store(address, open_store=buckets.open_store):
    store = open_store(address)
    kinds = store._fields[1:]
    return store._replace(**{kind: asking(kind, getattr(store, kind)) for kind in kinds})

bucket.EVERY, buckets.open_store = 0.3, open_store
runpy.run_module('sagan_jax.main', run_name='__main__', alter_sys=True)
"""


class Run(test_chaos.Run):
    """A run in a bucket; each process has a machine without any files of it."""

    def __init__(self, config, tmp_path):
        super().__init__(config, tmp_path)
        self.machines, self.requests = tmp_path / 'machines', tmp_path / 'requests'
        self.requests.touch()

    def start(self):
        home = self.machines / str(len(list(self.machines.glob('*'))))
        home.mkdir(parents=True)
        os.environ.update(XDG_CACHE_HOME=str(home), REQUESTS=str(self.requests))
        self.workdir = buckets.parse(BUCKET, '--workdir').folder
        super().start(program=['-c', PROGRAM], workdir=BUCKET)

    def manifests(self):
        return self.requests.read_text().count('write manifests/')


def survives(config, tmp_path, kills, seed):
    """Kills a run `kills` times, each on a new machine; returns its requests per round."""
    dice = random.Random(seed)
    straight, killed = test_chaos.Run(config, tmp_path / 'straight'), Run(config, tmp_path)
    straight.start()
    output, status = straight.end()
    assert status == 0, output
    resumed = []
    for _ in range(kills):
        killed.start()
        before = killed.manifests()
        if dice.random() < 0.8:
            wanted = before + dice.randint(1, 6)
            killed.wait_for(lambda wanted=wanted: killed.manifests() >= wanted)
        wait = test_chaos.time.monotonic() + dice.uniform(0, 1)
        killed.wait_for(lambda wait=wait: test_chaos.time.monotonic() > wait)
        output, status = killed.end(signal.SIGKILL)
        assert status == -signal.SIGKILL, output
        resumed += re.findall(r'resumes in .* from step ([\d,]+)\n', output)
    killed.start()
    output, status = killed.end()
    assert status == 0, output
    assert f'{BUCKET}, kept in {killed.workdir} and copied' in output
    os.environ['XDG_CACHE_HOME'] = str(tmp_path / 'reader')
    with bucket.fetched(buckets.parse(BUCKET, '--workdir')) as found:
        assert found != killed.workdir
        test_chaos.assert_same(straight.workdir, found, config)
    rounds = re.split(r'(?<=\n)(?=list \n)', killed.requests.read_text())[1:]
    kinds = [
        collections.Counter(line.split(' ')[0] for line in text.splitlines()) for text in rounds
    ]
    print('resumed from', resumed, 'writes per round', sorted(count['write'] for count in kinds))
    return kinds


@pytest.fixture
def service(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('REQUESTS', '')
    with bucket_servers.s3(monkeypatch, tmp_path):
        yield


def test_killed_once(service, tmp_path):
    config = tiny.config(num_train_steps=12, sample_every=6, dataset__num_classes=10)
    kinds = survives(config, tmp_path, kills=1, seed=0)
    # Three checkpoints at most are new in a round, and a file or two beside each.
    assert max(count['write'] for count in kinds) <= 100


@pytest.mark.thorough
def test_killed_ten_times(service, tmp_path):
    folder = tiny.scored_folder(tmp_path / 'pictures')
    config = test_chaos.settings(folder, 200)
    kinds = survives(config, tmp_path, kills=10, seed=1)
    assert max(count['write'] for count in kinds) <= 200

"""A run in a bucket that is killed, and resumed on other machines, ends as one that is not."""

import os
import random
import re
import signal
import time

import pytest

from sagan_jax.run import bucket
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import buckets
from sagan_jax.train import train
from tests import test_chaos, tiny
from tests.run import bucket_servers

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

    def __init__(self, config, tmp_path, address):
        super().__init__(config, tmp_path)
        self.address = address
        self.machines, self.requests = tmp_path / 'machines', tmp_path / 'requests'
        self.requests.touch()

    def start(self):
        home = self.machines / str(len(list(self.machines.glob('*'))))
        home.mkdir(parents=True)
        os.environ.update(XDG_CACHE_HOME=str(home), REQUESTS=str(self.requests))
        self.workdir = self.address.folder
        super().start(program=['-c', PROGRAM], workdir=str(self.address))

    def copied_step(self):
        """The last step whose checkpoint is in the bucket, with a manifest written after it."""
        requests = self.requests.read_text().rpartition('write manifests/')[0]
        found = re.findall(r'^write files/[^/]*/checkpoints/(\d+)/', requests, re.M)
        return max(map(int, found), default=0)


def survives(config, tmp_path, kills, seed):
    """Kills a run `kills` times, each on a new machine; returns the writes of each round."""
    dice = random.Random(seed)
    address = buckets.parse(f's3://bucket/runs/killed{kills}', '--workdir')
    straight, killed = test_chaos.Run(config, tmp_path / 'straight'), Run(config, tmp_path, address)
    straight.start()
    output, status = straight.end()
    assert status == 0, output
    steps = []
    for kill in range(kills):
        killed.start()
        latest = config.num_train_steps * (kill + 1) // (kills + 1)
        wanted = dice.randint(killed.copied_step() + 1, max(killed.copied_step() + 1, latest))
        killed.wait_for(lambda wanted=wanted: time.sleep(0.05) or killed.copied_step() >= wanted)
        time.sleep(dice.uniform(0, 0.4))
        output, status = killed.end(signal.SIGKILL)
        assert status == -signal.SIGKILL, output
        steps.append(killed.copied_step())
    killed.start()
    output, status = killed.end()
    assert status == 0, output
    resumed = re.search(r'resumes in .* from step ([\d,]+)\n', output)
    assert resumed
    assert int(resumed[1]) >= steps[-1] > 0
    assert f'{address}, kept in {killed.workdir} and copied' in output
    os.environ['XDG_CACHE_HOME'] = str(tmp_path / 'reader')
    with bucket.fetched(address) as found:
        assert found != killed.workdir
        test_chaos.assert_same(straight.workdir, found, config)
    rounds = re.split(r'(?<=\n)(?=list \n)', killed.requests.read_text())[1:]
    writes = [text.count('write ') for text in rounds]
    print(f'killed with the checkpoints of {steps} copied; {len(rounds)} rounds, writes {writes}')
    return writes


@pytest.fixture
def service(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('REQUESTS', '')
    with bucket_servers.s3(monkeypatch, tmp_path):
        yield


def test_a_run_goes_on_on_another_machine(service, tmp_path, monkeypatch, capsys):
    address = buckets.parse('s3://bucket/runs/moved', '--workdir')
    for machine, steps in enumerate((2, 4)):
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / str(machine)))
        with bucket.mirrored(address) as workdir:
            assert workdir.is_relative_to(tmp_path / str(machine))
            train(tiny.config(num_train_steps=steps, dataset__num_classes=10).lock(), workdir)
    assert 'from step 2\n' in capsys.readouterr().out
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'reader'))
    with bucket.fetched(address) as workdir:
        assert [line['step'] for line in RunFolder(workdir).metrics()] == [1, 2, 3, 4]
        assert RunFolder(workdir).checkpoint_steps() == [2, 4]


@pytest.mark.thorough
def test_killed_ten_times(service, tmp_path):
    folder = tiny.scored_folder(tmp_path / 'pictures')
    config = test_chaos.settings(folder, 200)
    assert max(survives(config, tmp_path, kills=10, seed=1)) <= 200

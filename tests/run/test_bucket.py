"""Runs in buckets of S3 and of Google Cloud Storage, while they are used and afterwards."""

import contextlib
import os
import sys
import threading
import time

import pytest

from sagan_jax.errors import UserError
from sagan_jax.run import bucket, bucket_owner, lock
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import buckets
from tests import file_server
from tests.run import bucket_servers
from tests.run.bucket_servers import ADDRESS, Memory, fail
from tests.run.test_bucket_copy import FIRST, SECOND, change_record, elsewhere, read, write

SCHEMES = ['s3', 'gs']


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A machine of its own: its cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))


@pytest.fixture(scope='module', params=SCHEMES)
def scheme(request, tmp_path_factory):
    """The scheme of a service that runs in this process and has a bucket called 'bucket'."""
    with pytest.MonkeyPatch.context() as patch:
        start = getattr(bucket_servers, request.param)
        with start(patch, tmp_path_factory.mktemp('aws')) as server:
            request.module.SERVER = server
            yield request.param


@pytest.fixture
def address(scheme, request):
    return buckets.parse(f'{scheme}://bucket/{request.node.originalname}/run', '--workdir')


# ---- Requests. ---------------------------------------------------------------------------------


def test_requests(address):
    store = buckets.open_store(address)
    beside = buckets.open_store(address._replace(path=f'{address.path}2'))
    beside.write('files/x', b'beside')
    assert store.list('') == {}
    assert store.read('files/x') is None
    content = {
        'files/a%20%C3%A9%23%3F@7': b'',
        'files/b/c': bytes(range(256)) * 1000,
        **{f'files/{number}': b'x' * number for number in range(7)},  # more than one page
    }
    for name, value in content.items():
        store.write(name, value)
    assert store.list('') == {name: len(value) for name, value in content.items()}
    assert all(store.read(name) == value for name, value in content.items())
    assert store.list('owner') == {}
    assert store.create('owner/1', b'first')
    assert not store.create('owner/1', b'second')
    assert store.list('owner') == {'owner/1': 5}
    assert store.read('owner/1') == b'first'
    store.write('owner/1', b'again')
    assert store.read('owner/1') == b'again'
    store.remove('owner/1')
    store.remove('owner/1')
    assert store.list('owner') == {}


def test_one_of_several_creates(address):
    stores, created = [buckets.open_store(address) for _ in range(2)], []

    def create(number):
        created.append(stores[number % 2].create('owner/1', b'%d' % number) * (number + 1))

    threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    (winner,) = filter(None, created)
    assert len(created) == 8
    assert stores[0].read('owner/1') == b'%d' % (winner - 1)


def test_a_bucket_that_does_not_exist(scheme):
    store = buckets.open_store(buckets.parse(f'{scheme}://none/run', '--workdir'))
    for request in (lambda: bucket_owner.take(store), lambda: store.create('x', b'')):
        with pytest.raises(
            UserError, match=rf'^There is no bucket {scheme}://none: create it with'
        ):
            request()


@pytest.mark.parametrize('code', ['AccessDenied', 'InvalidAccessKeyId', 'SignatureDoesNotMatch'])
def test_wrong_credentials_of_s3(monkeypatch, code):
    text = f'<Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
    with file_server.answering(lambda request: request.answer(403, text)) as server:
        monkeypatch.setenv('AWS_ENDPOINT_URL', server.url)
        monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'a')
        monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'b')
        monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
        store = buckets.open_store(buckets.parse('s3://bucket/run', '--workdir'))
        with pytest.raises(UserError, match=r'^s3://bucket/run gives no access \(no\): run `aws'):
            store.list('')


@pytest.mark.parametrize('status', [401, 403])
def test_wrong_credentials_of_gs(monkeypatch, tmp_path, status):
    with bucket_servers.gs(monkeypatch, tmp_path) as server:
        store = buckets.open_store(buckets.parse('gs://bucket/run', '--workdir'))
        server.failures = [status]
        with pytest.raises(
            UserError, match=r'^gs://bucket/run gives no access \(.*\): log in with'
        ):
            store.list('')


def test_a_server_that_fails_for_a_moment(monkeypatch, tmp_path):
    with bucket_servers.gs(monkeypatch, tmp_path) as server:
        store = buckets.open_store(buckets.parse('gs://bucket/run', '--workdir'))
        server.failures, server.delay = [503], 0.3
        store.write('a', b'1')
        assert store.read('a') == b'1'


def test_nobody_answers(monkeypatch, tmp_path):
    with bucket_servers.s3(monkeypatch, tmp_path):
        pass
    store = buckets.open_store(buckets.parse('s3://bucket/run', '--workdir'))
    with pytest.raises(UserError, match=r'does not answer \(.*\): check the network') as refused:
        store.list('')
    assert refused.value.status == 75


@pytest.mark.parametrize(('scheme', 'package'), [('gs', 'gcsfs'), ('s3', 's3fs')])
def test_a_missing_package(monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, f'{package}.core', None)
    with pytest.raises(
        UserError, match=f'^{scheme}:// needs the package {package}: pip install {package}$'
    ):
        buckets.open_store(buckets.Address(scheme, 'bucket', 'run'))


# ---- A run that is used. -----------------------------------------------------------------------


def test_a_round_trip(address, monkeypatch, tmp_path, capsys):
    with bucket.mirrored(address) as workdir:
        assert capsys.readouterr().out == (
            f'workdir        {address}, kept in {workdir} and copied every 30 s\n'
        )
        write(workdir, FIRST)
        with pytest.raises(UserError, match='is in use by process'), bucket.mirrored(address):
            pass
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    with bucket.fetched(address) as other:
        assert read(other) == FIRST
        assert other != workdir
    with bucket.mirrored(address) as other:
        write(other, SECOND)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    with bucket.mirrored(address) as again:
        assert again == workdir
        assert read(again) == SECOND


@pytest.fixture
def memory(monkeypatch):
    """A bucket in memory, to which changes are copied all the time."""
    memory = Memory()
    monkeypatch.setattr(buckets, 'open_store', memory.store)
    monkeypatch.setattr(bucket, 'EVERY', 0.01)
    monkeypatch.setattr(bucket, '_LONGEST', 0.05)
    monkeypatch.setattr(bucket, '_LAST_PAUSES', (0, 0.01))
    monkeypatch.setattr(bucket_owner, 'PATIENCE', 0.05)
    monkeypatch.setattr(bucket_owner, '_POLL', 0.01)
    return memory


def wait_for(happens):
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def use(files, then=lambda: None):
    """Writes the files of a run in a bucket, calls `then`, and returns the folder."""
    with bucket.mirrored(ADDRESS) as workdir:
        write(workdir, files)
        then()
    return workdir


def has_copied(memory):
    return lambda: any(name.startswith('manifests/') for name in memory.objects)


def test_changes_are_copied_during_the_block(memory, tmp_path):
    with bucket.mirrored(ADDRESS) as workdir:
        write(workdir, FIRST)
        wait_for(has_copied(memory))
        write(workdir, SECOND)
        wait_for(lambda: elsewhere(memory, tmp_path / 'other') == SECOND)


def test_the_network_fails_and_recovers(memory, tmp_path, capfd):
    with bucket.mirrored(ADDRESS) as workdir:
        memory.before = fail
        write(workdir, FIRST)
        time.sleep(0.2)
        memory.before = lambda kind, name: None
        wait_for(has_copied(memory))
    output = capfd.readouterr().out
    assert output.count('is not up to date (503): this continues, and copying is tried') == 1
    assert elsewhere(memory, tmp_path / 'other') == FIRST


def test_the_last_changes_cannot_be_copied(memory, tmp_path):
    with pytest.raises(UserError) as refused:
        use(FIRST, lambda: setattr(memory, 'before', fail))
    assert str(refused.value) == (
        f'The last changes of the run could not be copied to {ADDRESS} (503) and are in '
        f'{ADDRESS.folder}: give the same command again on this machine, which copies them.'
    )
    assert refused.value.status == 75
    memory.before = lambda kind, name: None
    change_record(memory, started='1')
    use(read(ADDRESS.folder))
    assert elsewhere(memory, tmp_path / 'other') == FIRST


def test_an_error_in_the_block_is_the_one_that_is_told(memory, capsys):
    def end():
        memory.before = fail
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use(FIRST, end)
    assert 'warning        The last changes of the run could not' in capsys.readouterr().out


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit(143), UserError('no')])
def test_what_ends_the_block_does_not_lose_its_changes(memory, monkeypatch, tmp_path, error):
    monkeypatch.setattr(bucket, 'EVERY', 60)

    def end():
        raise error

    with pytest.raises((KeyboardInterrupt, SystemExit, UserError)):
        use(FIRST, end)
    assert elsewhere(memory, tmp_path / 'other') == FIRST


def test_nothing_is_left_of_a_run_that_did_not_begin(memory):
    with contextlib.suppress(UserError), bucket.mirrored(ADDRESS):
        raise UserError('The configuration is wrong.')
    assert memory.objects == {}


def test_a_run_that_was_taken_over_learns_of_it(memory, monkeypatch, tmp_path):
    """Where training asks whether the folder is still its own."""

    def be_taken_over():
        with lock.owned(RunFolder(ADDRESS.folder)) as confirm:
            wait_for(has_copied(memory))
            change_record(memory, machine='another', host='far')
            monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
            use(SECOND, lambda: monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home')))
            change_record(memory, machine='another', host='far', process=7)
            write(ADDRESS.folder, FIRST | {'more': b''})
            while True:
                confirm()
                time.sleep(0.01)

    with pytest.raises(UserError, match=r'was taken over by process 7 on far since'):
        use(FIRST, be_taken_over)
    assert elsewhere(memory, tmp_path / 'third') == SECOND
    with bucket.mirrored(ADDRESS) as workdir, lock.owned(RunFolder(workdir)):
        assert read(workdir) == SECOND


def test_a_run_that_was_taken_over_at_its_end(memory, monkeypatch):
    monkeypatch.setattr(bucket, 'EVERY', 60)

    def be_taken_over():
        memory.objects['owner/000002.json'] = memory.objects['owner/000001.json']
        change_record(memory, process=7)

    with pytest.raises(UserError, match=f'^The workdir {ADDRESS} was taken over by process 7 on'):
        use(FIRST, be_taken_over)
    assert list(memory.objects) == ['owner/000001.json', 'owner/000002.json']


def test_a_reader_leaves_the_folder_of_a_run_as_it_is(memory, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bucket, 'EVERY', 60)
    with bucket.mirrored(ADDRESS) as workdir, lock.owned(RunFolder(workdir)):
        write(workdir, FIRST)
        with bucket.fetched(ADDRESS) as found:
            assert read(found) == FIRST
        assert f'written there by process {os.getpid()}' in capsys.readouterr().out
        memory.objects.clear()
        with pytest.raises(UserError, match=f'{workdir} is in use by process'):
            use(FIRST)


def test_a_reader_takes_nothing(memory, monkeypatch, tmp_path):
    with bucket.mirrored(ADDRESS) as workdir:
        write(workdir, FIRST)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    memory.requests.clear()
    before = dict(memory.objects)
    with bucket.fetched(ADDRESS) as found:
        assert read(found) == FIRST
    assert memory.objects == before
    assert {kind for kind, _ in memory.requests} == {'list', 'read'}


# ---- Other outputs. ----------------------------------------------------------------------------


def test_an_output_is_copied(address, capsys):
    for name, files in {'one.png': {'': b'png'}, 'many': {'/a.json': b'{}', '/b/c': b'c'}}.items():
        output = address._replace(path=f'{address.path}/{name}')
        with buckets.uploaded(output) as path:
            for inner, content in files.items():
                file = path.parent / f'{name}{inner}'
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        assert capsys.readouterr().out == f'copied         to {output}\n'
        store = buckets.open_store(address)
        found = {key: store.read(key) for key in store.list(name)}
        assert found == {f'{name}{inner}': content for inner, content in files.items()}
        assert not path.exists()
    with buckets.uploaded(address._replace(path=f'{address.path}/one.png')) as path:
        path.write_bytes(b'again')
    assert store.read('one.png') == b'again'
    occupied = buckets.uploaded(output)
    with pytest.raises(UserError, match=r'/run/many holds other objects: choose another --output'):
        occupied.__enter__()


def test_an_output_that_fails_is_not_copied(address):
    def fail_halfway():
        with buckets.uploaded(address) as path:
            path.write_bytes(b'half')
            raise ValueError('no image')

    with pytest.raises(ValueError, match='no image'):
        fail_halfway()
    assert buckets.open_store(address._replace(path=address.path.rpartition('/')[0])).list('') == {}

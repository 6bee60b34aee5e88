"""A bucket holds a whole run or the one before, whatever happens to those who write it."""

import contextlib
import json
import math
import os
import platform
import shutil
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagan_jax.errors import UserError
from sagan_jax.run import bucket_copy, bucket_files, bucket_owner, owners
from sagan_jax.run.bucket_files import scan
from tests.run.bucket_servers import Killed, Memory, fail

FIRST = {
    'config.json': b'{}',
    'metrics.jsonl': b'1\n2\n',
    'checkpoints/1/state/a': b'one',
    'checkpoints/1/state/empty': b'',
    'checkpoints/2/state/a': b'two',
    'best/1/a': b'best',
}
SECOND = {
    'config.json': b'{}',
    'metrics.jsonl': b'1\n2\n3\n',
    'checkpoints/2/state/a': b'two',
    'checkpoints/3/state/a': b'three',
    'best/1/a': b'other',
    'samples/3.png': b'png',
}


def write(folder, files):
    """Makes the files of a folder equal to `files`; curves grow in place."""
    for path in bucket_files.scan(folder):
        if path not in files:
            (folder / path).unlink()
            with contextlib.suppress(OSError):  # other files are in it
                os.removedirs((folder / path).parent)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        old = (folder / path).read_bytes() if (folder / path).exists() else None
        if old is not None and path == 'metrics.jsonl' and content.startswith(old):
            with (folder / path).open('ab') as file:
                file.write(content[len(old) :])
        elif old != content:
            (folder / 'new').write_bytes(content)
            (folder / 'new').rename(folder / path)


def read(folder):
    return {path: (folder / path).read_bytes() for path in scan(folder)}


class Machine:
    """A process with a folder of its own, which owns the run."""

    def __init__(self, memory, folder):
        self.memory, self.folder, self.store = memory, folder, memory.store()

    def take(self):
        self.ownership = bucket_owner.take(self.store)
        self.copy = bucket_copy.fetch(self.store, self.folder)
        return self

    def copies(self, files=None):
        if files is not None:
            write(self.folder, files)
        bucket_copy.copy_changes(self.ownership, self.copy)

    def leave(self):
        bucket_owner.release(self.ownership, has_run=True)


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def machine(memory, tmp_path):
    return Machine(memory, tmp_path / 'machine').take()


def elsewhere(memory, folder):
    """What a machine that knows nothing of the run reads."""
    shutil.rmtree(folder, ignore_errors=True)
    bucket_copy.fetch(memory.store(), folder)
    return read(folder)


def assert_no_garbage(memory):
    manifests = [name for name in memory.objects if name.startswith('manifests/')]
    assert len(manifests) == 1
    listed = {
        part[0]
        for parts in json.loads(memory.objects[manifests[0]])['files'].values()
        for part in parts
    }
    left = {name for name in memory.objects if name.startswith('files/')}
    assert left == listed
    assert len([name for name in memory.objects if name.startswith('owner/')]) == 1
    assert len(memory.objects) == len(listed) + 2


def change_record(memory, **changes):
    """Changes the record of the owner."""
    name = max(name for name in memory.objects if name.startswith('owner/'))
    record = owners.parse(memory.objects[name])
    memory.objects[name] = owners.serialise(record._replace(**changes))


# ---- What arrives. -----------------------------------------------------------------------------

# What Linux allows; Python reads a byte that is no UTF-8, such as 0xff, as a surrogate.
LETTERS = st.characters(codec='utf-8', exclude_characters='/\0') | st.just(os.fsdecode(b'\xff'))
NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(lambda name: name not in ('.', '..'))
FILES = st.dictionaries(
    st.lists(st.sampled_from('ab') | NAMES, min_size=1, max_size=3).map('/'.join),
    st.sampled_from([0, 1, 6, 7, 8, 14, 15, 40]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size)
    ),
    max_size=6,
).filter(
    lambda files: (
        not any(
            other.startswith(f'{path}/')
            or path in ('new', '.bucket.json', '.bucket.lock', 'run.lock')
            for path in files
            for other in ('', *files)
        )
    )
)


@settings(max_examples=25, deadline=None)
@given(st.lists(FILES, min_size=1, max_size=4))
def test_what_is_copied_arrives(tmp_path_factory, versions):
    memory, folder = Memory(), tmp_path_factory.mktemp('run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_copy, '_PART', 7)
        machine = Machine(memory, folder / 'machine').take()
        for files in versions:
            machine.copies(files)
            assert elsewhere(memory, folder / 'other') == files
        if any(versions):
            assert_no_garbage(memory)


def test_temporary_files_stay_here(memory, machine, tmp_path):
    temporary = {
        'checkpoints/4.orbax-checkpoint-tmp/a': b'x',
        'checkpoints/4.orbax-checkpoint-tmp-17/a': b'x',
        f'samples/.sagan_jax-{"0" * 32}.partial.png': b'x',
        'run.lock': b'x',
    }
    write(machine.folder, FIRST | temporary)
    machine.copies()
    assert elsewhere(memory, tmp_path / 'other') == FIRST


def test_nothing_is_asked_while_nothing_changes(memory, machine):
    machine.copies(FIRST)
    memory.requests.clear()
    machine.copies()
    assert memory.requests == []


def test_a_round_asks_for_what_changed_alone(memory, machine):
    machine.copies(FIRST)
    memory.requests.clear()
    machine.copies(SECOND)
    kinds = [kind for kind, _ in memory.requests]
    assert kinds.count('list') == 1
    written = [
        name.partition('@')[0].partition('/')[2].partition('/')[2]
        for _, name in memory.requests
        if _ == 'write'
    ]
    assert sorted(written[:-1]) == sorted(
        ['metrics.jsonl', 'checkpoints/3/state/a', 'best/1/a', 'samples/3.png']
    )
    assert memory.requests[1 + len(written) - 1][1].startswith('manifests/')  # after all others
    # Two files of the first checkpoint, what the best one held before, and a manifest.
    assert kinds.count('remove') == 4
    assert len(kinds) == 1 + len(written) + 4


def test_the_bucket_does_not_grow(memory, machine, tmp_path):
    for step in range(30):
        files = {f'checkpoints/{n}/a': b'%d' % n for n in range(step, step + 3)}
        machine.copies(
            files | {'metrics.jsonl': b'line\n' * (step + 1), 'report.html': b'%d' % step}
        )
        assert_no_garbage(memory)
    assert elsewhere(memory, tmp_path / 'other') == read(machine.folder)


def test_curves_are_copied_from_their_ends(memory, machine, tmp_path):
    sent, content, rounds = [], b'', 300
    memory.after = lambda kind, name: (
        sent.append(len(memory.objects[name])) if kind == 'write' and '/metrics' in name else None
    )
    for step in range(rounds):
        content += b'%d ' % step + b'x' * (step * 37 % 90)
        machine.copies({'metrics.jsonl': content})
    assert elsewhere(memory, tmp_path / 'other') == {'metrics.jsonl': content}
    parts = [name for name in memory.objects if name.startswith('files/')]
    assert len(parts) <= math.log2(len(content)) + 1
    assert sum(sent) <= 3 * len(content) * math.log2(rounds)  # and not half of content · rounds
    write(machine.folder, {})
    machine.copies({'metrics.jsonl': content[:500]})  # a resumed run writes it again
    assert elsewhere(memory, tmp_path / 'other') == {'metrics.jsonl': content[:500]}


# ---- Who was killed, and networks that fail. ---------------------------------------------------


def interrupted(memory, tmp_path, error, moment):
    """For each request of a copy from FIRST to SECOND: a machine on which it raises."""
    for number in range(1000):
        copied = Memory()
        machine = Machine(copied, tmp_path / str(number)).take()
        machine.copies(FIRST)
        assert_no_garbage(copied)
        counted, lock = [], threading.Lock()

        def raise_at(kind, name, counted=counted, lock=lock, number=number):
            with lock:
                counted.append(name)
                if len(counted) > number:  # a process that is killed sends no more
                    raise error(name)

        setattr(copied, moment, raise_at)
        ended = False
        try:
            machine.copies(SECOND)
            ended = True
        except (UserError, Killed):
            pass
        copied.before = copied.after = lambda kind, name: None
        if error is Killed:
            change_record(copied, started='1')
        yield number, machine, copied, ended
        if ended:
            return


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('error', [Killed, lambda name: fail()])
def test_a_reader_sees_one_of_two_states(tmp_path, memory, moment, error):
    seen = []
    for number, machine, copied, _ in interrupted(memory, tmp_path / 'm', error, moment):
        found = elsewhere(copied, tmp_path / 'other')
        assert found in (FIRST, SECOND), number
        seen.append(found == SECOND)
        # On this machine nothing is lost, whether the same process tries again or another does.
        if error is Killed:
            machine = Machine(copied, machine.folder).take()
        assert read(machine.folder) == SECOND
        machine.copies()
        assert elsewhere(copied, tmp_path / 'other') == SECOND
        machine.copies({**SECOND, 'x': b''})
        assert_no_garbage(copied)
    assert seen == sorted(seen)  # there is one moment from which the new state is seen
    assert not seen[0]
    assert len(seen) > 8


def test_what_was_copied_before_an_error_is_not_copied_again(memory, machine):
    sent = []
    memory.after = lambda kind, name: sent.append(name) if kind == 'write' else None
    memory.before = lambda kind, name: fail() if name.startswith('manifests/0') else None
    for _ in range(3):
        with pytest.raises(UserError):
            machine.copies(FIRST)
    assert len(sent) == len(FIRST)


def test_another_machine_goes_on_where_one_was_killed(memory, tmp_path):
    for number, machine, copied, _ in interrupted(memory, tmp_path / 'm', Killed, 'before'):
        other = Machine(copied, tmp_path / f'other{number}').take()
        begun = read(other.folder)
        other.copies(begun | {'checkpoints/9/a': b'nine'})
        other.leave()
        assert elsewhere(copied, tmp_path / 'third') == begun | {'checkpoints/9/a': b'nine'}
        assert_no_garbage(copied)
        # The first machine's folder is behind the bucket now, or apart from it.
        assert read(Machine(copied, machine.folder).take().folder) == read(other.folder)


def test_a_download_that_was_killed_is_repeated(memory, machine, tmp_path):
    machine.copies(FIRST)
    machine.leave()
    other = tmp_path / 'other'
    for number in range(100):
        asked = []

        def kill(kind, name, asked=asked, number=number):
            asked.append(name)
            if len(asked) > number:
                raise Killed

        memory.before = kill
        shutil.rmtree(other, ignore_errors=True)
        write(other, {'config.json': b'old', 'x/y': b'old'})
        with contextlib.suppress(Killed):
            bucket_copy.fetch(memory.store(), other)
            break
        memory.before = lambda kind, name: None
        bucket_copy.fetch(memory.store(), other)
        assert read(other) == FIRST
    assert number > len(FIRST)
    assert read(other) == FIRST


def test_files_that_vanish_begin_the_round_again(memory, machine, tmp_path):
    """Orbax removes an old checkpoint, file by file, while the round is on its way."""
    write(machine.folder, FIRST)
    (machine.folder / 'checkpoints/1/state/a').unlink()  # half of it is gone

    def remove(kind, name):
        shutil.rmtree(machine.folder / 'checkpoints/1', ignore_errors=True)

    memory.before = remove
    machine.copies()
    memory.before = lambda kind, name: None
    whole = {path: content for path, content in FIRST.items() if 'checkpoints/1' not in path}
    assert elsewhere(memory, tmp_path / 'other') == whole
    assert_no_garbage(memory)


def test_checkpoints_are_listed_before_what_is_written_before_them(machine):
    names = [path.partition('/')[0] for path in FIRST]
    write(machine.folder, FIRST | {'aaa': b'', 'evaluation/1.json': b''})
    order = [path.partition('/')[0] for path in scan(machine.folder)]
    assert order[: names.count('checkpoints') + 1] == ['checkpoints'] * 3 + ['best']


def test_a_reader_is_overtaken_by_new_manifests(memory, machine, tmp_path):
    machine.copies(FIRST)
    states = [SECOND]

    def overtake(kind, name):
        if kind == 'read' and name.startswith('files/') and states:
            files = states.pop()
            memory.before, before = (lambda kind, name: None), memory.before
            machine.copies(files)
            memory.before = before

    memory.before = overtake
    assert elsewhere(memory, tmp_path / 'other') == SECOND


def test_an_object_that_is_lost_is_copied_again(memory, machine, tmp_path):
    machine.copies(FIRST)
    lost = next(name for name in memory.objects if name.endswith('checkpoints/1/state/a'))
    del memory.objects[lost]
    with pytest.raises(UserError, match='lacks objects'):
        elsewhere(memory, tmp_path / 'other')
    machine.copies({**FIRST, 'x': b''})
    assert elsewhere(memory, tmp_path / 'other') == {**FIRST, 'x': b''}


# ---- Here and there. ---------------------------------------------------------------------------


def test_a_newer_folder_stays(memory, machine):
    machine.copies(FIRST)
    machine.leave()
    write(machine.folder, SECOND)
    again = Machine(memory, machine.folder).take()
    assert read(again.folder) == SECOND
    assert not [name for kind, name in memory.requests if kind == 'read' and 'files/' in name]


def test_a_newer_bucket_replaces_the_folder(memory, machine, tmp_path, capsys):
    machine.copies(FIRST)
    machine.leave()
    other = Machine(memory, tmp_path / 'other').take()
    assert read(other.folder) == FIRST
    other.copies(SECOND)
    other.leave()
    memory.requests.clear()
    write(machine.folder, FIRST | {'checkpoints/7/a': b'of its own', 'own/a': b''})
    assert read(Machine(memory, machine.folder).take().folder) == SECOND
    assert not (machine.folder / 'own').exists()
    fetched = [name for kind, name in memory.requests if kind == 'read' and 'files/' in name]
    assert len(fetched) == 5  # what is the same on both sides is not downloaded
    assert 'was written elsewhere since: it replaces what' in capsys.readouterr().out


def test_an_emptied_bucket_does_not_empty_the_folder(memory, machine):
    machine.copies(FIRST)
    memory.objects.clear()
    with pytest.raises(UserError, match=r'is empty, and .* remove .* or choose another --workdir'):
        Machine(memory, machine.folder).take()
    assert read(machine.folder) == FIRST


@pytest.mark.parametrize('path', ['../x', '/etc/x', 'a/../../x', '', 'a//b', 'a/./b', 'a\0'])
def test_a_manifest_cannot_write_elsewhere(memory, machine, tmp_path, path):
    memory.objects['files/000001-000001/x'] = b'x'
    files = {bucket_files.quoted(path): [['files/000001-000001/x', 1]]}
    memory.objects['manifests/000001-000001.json'] = json.dumps(
        {'id': 'a', 'files': files}
    ).encode()
    with pytest.raises(UserError, match='is not as this program wrote it'):
        elsewhere(memory, tmp_path / 'other')


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['id', 'files', 'x']), inner, max_size=3)
    ),
)


@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_a_manifest_that_is_none(tmp_path_factory, content):
    memory = Memory()
    memory.objects['manifests/000001-000001.json'] = content
    with contextlib.suppress(UserError):
        assert elsewhere(memory, tmp_path_factory.mktemp('x') / 'other') == {}


# ---- One at a time. ----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(bucket_owner, 'PATIENCE', 0.1)
    monkeypatch.setattr(bucket_owner, '_POLL', 0.01)


def of_another_machine(memory):
    change_record(memory, machine='another', host='far')


def test_one_of_several_takers_wins(memory):
    barrier, won, refused = threading.Barrier(8), [], []

    def take():
        barrier.wait()
        try:
            won.append(bucket_owner.take(memory.store()))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1
    assert len(refused) == 7
    for sentence in refused:
        assert sentence.startswith(f'The workdir {memory.store().address} is in use by process ')
        assert platform.node() in sentence


def test_all_see_the_same_and_one_wins(memory):
    """As above, where all have made their listing before any creates its record."""
    barrier, lock, won = threading.Barrier(4), threading.Lock(), []

    def meet(kind, name):
        if kind == 'create':
            barrier.wait()

    memory.before = meet

    def take():
        with contextlib.suppress(UserError):
            found = bucket_owner.take(memory.store())
            with lock:
                won.append(found)

    threads = [threading.Thread(target=take) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [found.number for found in won] == [1]


def test_an_answer_that_was_lost_is_no_refusal(memory):
    """The library makes the request again, and finds its own record."""
    store = memory.store()
    twice = store._replace(create=lambda *args: store.create(*args) and store.create(*args))
    assert bucket_owner.take(twice).number == 1


def test_a_process_that_is_gone_is_replaced(memory, machine, monkeypatch, capsys):
    machine.copies(FIRST)
    with pytest.raises(UserError, match='in use by process'):
        bucket_owner.take(machine.store)
    monkeypatch.setattr(bucket_owner.owners, 'is_alive', lambda record: False)
    assert bucket_owner.take(machine.store).number == 2
    assert 'which is gone' in capsys.readouterr().out
    assert [name for name in memory.objects if 'owner' in name] == ['owner/000002.json']


def test_a_machine_that_gives_no_sign_is_replaced(memory, machine, impatient):
    of_another_machine(memory)
    assert bucket_owner.take(machine.store).number == 2


def test_a_machine_that_gives_signs_is_not(memory, machine, impatient, monkeypatch):
    monkeypatch.setattr(bucket_owner, 'BEAT', 0.01)
    machine.ownership.record = machine.ownership.record._replace(machine='another', host='far')
    of_another_machine(memory)
    ended = threading.Event()
    beating = threading.Thread(target=bucket_owner.beat, args=(machine.ownership, ended))
    beating.start()
    with pytest.raises(UserError, match=r'in use by process \d+ on far'):
        bucket_owner.take(machine.store)
    ended.set()
    beating.join()
    machine.leave()
    assert bucket_owner.take(machine.store).number == 2


def test_a_beat_survives_the_network_and_ends_with_the_ownership(memory, machine, monkeypatch):
    monkeypatch.setattr(bucket_owner, 'BEAT', 0.001)
    failures = [True] * 5
    memory.before = lambda kind, name: fail() if failures and failures.pop() else None
    beating = threading.Thread(
        target=bucket_owner.beat, args=(machine.ownership, threading.Event())
    )
    beating.start()
    while ('write', 'owner/000001.json') not in memory.requests:
        assert beating.is_alive()
    memory.objects['owner/000002.json'] = memory.objects['owner/000001.json']
    beating.join(10)
    assert not beating.is_alive()
    assert machine.ownership.lost


def test_a_suspended_owner_changes_nothing(memory, tmp_path, impatient):
    """At any request of its round it is suspended, taken over, and wakes up."""
    for number in range(1000):
        copied = Memory()
        machine = Machine(copied, tmp_path / f'{number}a').take()
        machine.copies(FIRST)
        counted = []
        other = Machine(copied, tmp_path / f'{number}b')

        def suspend(kind, name, counted=counted, number=number, copied=copied, other=other):
            counted.append(name)
            if len(counted) == number + 1:
                copied.before = lambda kind, name: None
                of_another_machine(copied)
                other.take().copies(
                    {'config.json': b'{}', 'checkpoints/1/state/a': b'one', 'b': b''}
                )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('sagan_jax.system.buckets._THREADS', 1)
            copied.before = suspend
            with contextlib.suppress(UserError):
                machine.copies(SECOND)
            copied.before = lambda kind, name: None
        if len(counted) <= number:
            break
        other.copies(read(other.folder) | {'c': b''})  # what the first has removed is there again
        assert elsewhere(copied, tmp_path / 'reader') == read(other.folder)
        with pytest.raises(UserError, match=r'was taken over by process \d+ on '):
            machine.copies(SECOND | {'d': b''})
        assert machine.ownership.lost
        other.copies(read(other.folder) | {'e': b''})
        assert elsewhere(copied, tmp_path / 'reader') == read(other.folder)
        assert_no_garbage(copied)
    assert number > 8

"""The reader of files of `torch.save`: right values, and nothing else from hostile files."""

import json
import os
import resource
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sagan_jax.errors import UserError
from sagan_jax.published import pickles, pth
from tests.published import pth_files
from tests.published.pth_files import KINDS, WRITERS, Built, Call, Name, Persistent, Raw, tensor

GOLDEN = Path(__file__).parents[1] / 'golden' / 'published'
FILES = sorted(GOLDEN.glob('*/*.pth'))
BOTH = pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)


def tensors(value):
    """All tensors of a value, as arrays by name; reads it completely."""
    found, queue, seen = {}, [('', value)], set()
    while queue:
        name, part = queue.pop()
        if id(part) in seen or len(name) > 200:
            continue  # in itself, or nested deeply
        seen.add(id(part))
        if isinstance(part, pth.Tensor):
            found[name] = part.array()
        items = part.items() if isinstance(part, dict) else ()
        items = enumerate(part) if isinstance(part, (list, tuple)) else items
        queue += [(f'{name}.{key}'.lstrip('.'), held) for key, held in items]
    return found


def read(path):
    with pth.opened(path) as content:
        return tensors(content)


# ---- Right values. -----------------------------------------------------------------------------


def expected(info, state, key):
    """The tensor that the golden README's rule gives for a key of a file."""
    prefix, _, name = key.partition('.')
    if prefix == 'generator_ema' and name.rpartition('.')[2] in (
        *('weight_u', 'weight_v', 'running_mean', 'running_var', 'num_batches_tracked'),
    ):
        prefix = 'generator'  # the averaging copies them
    if prefix == 'generator_ema':
        own = state['G'][name]
        return 0.8 * own + 0.2 * pth_files.seeded(info['seed_ema'], name, own.shape)
    return state['D' if prefix == 'discriminator' else 'G'][name]


@pytest.mark.parametrize('path', FILES, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_the_files_of_pytorch_hold_what_their_rule_says(path):
    info = json.loads((path.parent / 'info.json').read_text())
    state = {
        network: pth_files.seeded_state(
            info[f'seed_{network}'],
            {key: tuple(shape) for key, (shape, _) in info[network].items()},
        )
        for network in 'GD'
    }
    found = read(path)
    assert (len(found) > 40) == (path.name != 'state_dict.pth')
    for key, array in found.items():
        name = key.removeprefix('state_dict.')
        if name.startswith(('optimizer', 'param_groups')):
            continue
        if not name.startswith(('generator', 'discriminator')):
            of = 'discriminator' if path.name.startswith(('D', 'model=D')) else 'generator'
            name = f'{of}.{name}'
        value = expected(info, state, name)
        assert array.dtype == value.dtype
        assert array.shape == value.shape
        np.testing.assert_allclose(array, value, rtol=0, atol=2e-7)


ARRAYS = st.sampled_from(sorted(KINDS)).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
)


@BOTH
@settings(max_examples=40, deadline=None)
@given(array=ARRAYS, axes=st.permutations(range(4)), before=st.integers(0, 3))
def test_tensors_of_every_kind_with_offsets_and_strides(
    tmp_path_factory, write, array, axes, before
):
    """A transposed view that begins inside a storage, beside a view of the whole storage."""
    path = tmp_path_factory.mktemp('pth') / 'x.pth'
    axes = [axis for axis in axes if axis < array.ndim]
    whole = np.concatenate([np.zeros(before, array.dtype), array.ravel()])
    held = pth_files.storage(whole, '7')
    strides = [array.strides[axis] // array.itemsize for axis in axes]
    shape = array.transpose(axes).shape
    value = {'view': tensor(held, shape, before, strides), 'whole': tensor(held, whole.shape)}
    write(path, {'state_dict': Built(value, {'_metadata': {'': {'version': 1}}})})
    found = read(path)
    np.testing.assert_array_equal(found['state_dict.view'], array.transpose(axes))
    np.testing.assert_array_equal(found['state_dict.whole'], whole)
    assert found['state_dict.view'].dtype == array.dtype


@BOTH
def test_bfloat16(tmp_path, write):
    values = np.array([1, -2.5, 3e38, 1e-38, np.inf, 0.1], ml_dtypes.bfloat16)
    held = pth_files.Storage('BFloat16Storage', '0', values.tobytes(), values.size)
    write(tmp_path / 'x.pth', {'a': tensor(held, (2, 3))})
    found = read(tmp_path / 'x.pth')['a']
    np.testing.assert_array_equal(found, values.astype(np.float32).reshape(2, 3))


@BOTH
def test_only_what_is_asked_for_is_read(tmp_path, write):
    """The moments of an optimizer, here absent from the disk, cost nothing."""
    path, small = tmp_path / 'x.pth', pth_files.storage(np.arange(3.0), '0')
    large = pth_files.storage(np.zeros(2**20), '1')
    write(path, {'small': tensor(small, (3,)), 'large': tensor(large, (2**20,))})
    tracemalloc.start()
    with pth.opened(path) as content:
        np.testing.assert_array_equal(content['small'].array(), [0, 1, 2])
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The format before zip reads its pickles from the file's first 16 MiB.
    assert peak < 2**20 + (write is pth_files.write_legacy) * 2**25


# ---- Hostile files. ----------------------------------------------------------------------------

WATCHED = {'calls': None}
FORBIDDEN = (
    *(
        'import',
        'exec',
        'compile',
        'os.',
        'subprocess.',
        'socket.',
        'pickle.',
        'ctypes.',
        'shutil.',
    ),
    *('marshal.', 'code.', 'builtins.input', 'urllib.', 'ftplib.', 'glob.', 'pty.', 'webbrowser.'),
)


def watch(event, arguments):
    calls = WATCHED['calls']
    if calls is None:
        return
    writes = event == 'open' and str(arguments[1] or '').strip('rb')
    if writes or event.startswith(FORBIDDEN):
        calls.append((event, arguments))


@pytest.fixture(scope='module', autouse=True)
def audit():
    for encoding in ('cp437', 'raw_unicode_escape'):  # each is imported once
        b'x'.decode(encoding)
    outcome(FILES[0])
    sys.addaudithook(watch)  # stays for as long as the process


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 2**18


def outcome(path):
    """Reads a whole file under the eyes of the audit hook: its tensors, or the error's text."""
    WATCHED['calls'] = []
    try:
        found = read(path)
    except UserError as error:
        found = str(error)
    finally:
        calls, WATCHED['calls'] = WATCHED['calls'], None
    assert not calls, calls
    return found


def test_the_audit_hook_sees_calls_and_imports(tmp_path):
    import pickle

    path = tmp_path / 'touched'
    WATCHED['calls'] = []
    with pytest.raises(TypeError):
        pickle.loads(pth_files.pickled(Call(Name('os', 'mkdir'), (str(path), 5, 6, 7, 8))))
    calls, WATCHED['calls'] = WATCHED['calls'], None
    assert calls


WEIGHT = tensor(pth_files.storage(np.arange(6, dtype=np.float32), '0'), (2, 3))
RUN = ('touch touched',)
GETATTR, IMPORT = Name('builtins', 'getattr'), Name('builtins', '__import__')
REBUILD = Name('torch._utils', '_rebuild_tensor_v2')
LONG = b'X' + struct.pack('<I', 2**20) + b'x' * 2**20 + b'q\x00'  # a text of 1 MiB
DEEP = 100_000
INERT = {
    'os.system': Call(Name('os', 'system'), RUN),
    'posix.system': Call(Name('posix', 'system'), RUN),
    'eval': Call(Name('builtins', 'eval'), ('__import__("os").system("touch touched")',)),
    'Python 2': Call(Name('__builtin__', 'eval'), ('open("touched", "w")',)),
    'getattr chain': Call(Call(GETATTR, (Call(IMPORT, ('os',)), 'system')), RUN),
    'call of a tensor': Call(WEIGHT, RUN),
    'dotted name': Call(Name('os', 'path.os.system'), RUN),
    'object with state': Built(Call(Name('subprocess', 'Popen'), ()), {'__class__': 1}),
    'class with state': Built(Name('collections', 'OrderedDict'), (None, {'get': 1})),
    'INST': Raw(b'(X\x0d\x00\x00\x00touch touchedios\nsystem\n'),
    'OBJ': Raw(b'(cos\nsystem\nX\x0d\x00\x00\x00touch touchedo'),
    'NEWOBJ': Raw(b'cos\nsystem\nX\x0d\x00\x00\x00touch touched\x85\x81'),
    'NEWOBJ_EX': Raw(b'cos\nsystem\nX\x0d\x00\x00\x00touch touched\x85}\x92'),
    'STACK_GLOBAL': Raw(b'\x8c\x02os\x8c\x06system\x93X\x0d\x00\x00\x00touch touched\x85R'),
    'extension': Raw(b'\x82\x01'),
    'reduced dictionary': Call(Name('collections', 'OrderedDict'), ([('a', 1)],)),
    'dictionary in itself': Raw(b'}q\x05X\x01\x00\x00\x00ah\x05s'),
    'list in itself': Raw(b']q\x05h\x05a'),
    'deep tuples': Raw(b'N' + b'\x85' * DEEP),
    'deep lists': Raw(b']' * DEEP + b'a' * (DEEP - 1)),
    'deep calls': Raw(b'ca\nb\n' * DEEP + b'N' + b'\x85R' * DEEP),
    'deep key': Raw(b'}' + b'N' + b'\x85' * DEEP + b'Ns'),
    'unhashable key': Raw(b'}]Ns'),
    'sets': Raw(b'\x8f(K\x01K\x02\x90'),
    'large memo index': Raw(b'Nr\xff\xff\xff\xff'),
    'two references': Raw(b'(' + LONG + b'h\x00' * 10_000 + b't'),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize('name', INERT)
def test_what_a_pickle_asks_for_is_inert(tmp_path, monkeypatch, write, name):
    monkeypatch.chdir(tmp_path)
    write('x.pth', {'hostile': INERT[name], 'weight': WEIGHT})
    found = outcome(Path('x.pth'))
    np.testing.assert_array_equal(found['weight'], np.arange(6).reshape(2, 3))
    assert sorted(path.name for path in Path().iterdir()) == ['x.pth']


def held(count, kind='FloatStorage', key='0'):
    """A storage that claims `count` numbers and has six."""
    return pth_files.Storage(kind, key, np.arange(6, dtype=np.float32).tobytes(), count)


REFUSED = {
    'exceeds its storage': tensor(held(6), (7,)),
    'begins behind its storage': tensor(held(6), (1,), offset=6),
    'stride of 0': tensor(held(6), (2**30,), strides=(0,)),
    'negative stride': tensor(held(6), (2,), offset=3, strides=(-1,)),
    'negative offset': tensor(held(6), (2,), offset=-1),
    'huge shape': tensor(held(6), (2**61, 2**61)),
    'many axes': tensor(held(6), (1,) * 40),
    'shape that is no tuple': Call(REBUILD, (held(6), 0, [6], [1])),
    'no arguments': Call(REBUILD, ()),
    'storage of 4 GiB': tensor(held(2**30), (2**30,)),
    'storage of 4 EiB': tensor(held(2**60), (2**60,)),
    'storage without a name': Persistent(('storage', Name('torch', 'FloatStorage'), 5, 'cpu', 6)),
    'storage of text': Persistent(('storage', 'FloatStorage', '0', 'cpu', 6)),
    'other identity': Persistent(('module', Name('os', 'system'), 'ls')),
    'text of 4 GiB': Raw(b'X\xff\xff\xff\xffabc'),
    'text of 16 EiB': Raw(b'\x8d' + b'\xff' * 8 + b'abc'),
    'bytes of 8 EiB': Raw(b'\x8e' + b'\xff' * 7 + b'\x7fabc'),
    'number of 2 GiB': Raw(b'\x8b\xff\xff\xff\x7fabc'),
    'too many operations': Raw(b'N' + b'0N' * 20_000),
    'too many tuples': Raw(b'(' * 20_000 + b'l' * 20_000),
    'long name': Raw(LONG + b'0' + b'h\x00h\x00\x93' * 9999),
    'empty stack': Raw(b'R'),
    'missing mark': Raw(b't'),
    'missing memo': Raw(b'h\x09'),
    'buffers': Raw(b'\x97'),
    'not Unicode': Raw(b'X\x01\x00\x00\x00\xff'),
    'unknown operation': Raw(b'\xff'),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize('name', REFUSED)
def test_what_a_file_cannot_hold_is_refused_in_one_sentence(tmp_path, monkeypatch, write, name):
    path = tmp_path / 'x.pth'
    monkeypatch.setattr(pickles, 'MAX_OPERATIONS', 20_000)
    write(path, {'hostile': REFUSED[name]})
    text = outcome(path)
    assert isinstance(text, str)
    assert str(path) in text
    assert '\n' not in text


def test_archives_that_claim_too_much_are_refused(tmp_path):
    path, value = tmp_path / 'x.pth', {'a': tensor(held(2**26), (2**26,))}
    bomb = b'\0' * 2**26
    pth_files.write_zip(path, {'a': tensor(held(5), (5,))})
    assert 'has 24 bytes' in outcome(path)
    pth_files.write_zip(path, value, compression=zipfile.ZIP_DEFLATED, **{'data/0': bomb})
    assert path.stat().st_size < 2**20
    assert 'is compressed' in outcome(path)
    pth_files.write_zip(path, {}, **{'data.pkl': b'\x80\x02' + b'N0' * 2**23 + b'N.'})
    assert 'in one piece' in outcome(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', pth_files.pickled({}))
        for index in range(400):
            archive.writestr(f'a/{index:050000}', b'')
    assert 'in one piece' in outcome(path)


def test_names_in_an_archive_are_not_paths(tmp_path):
    secret = tmp_path / 'secret'
    secret.write_bytes(b'\0' * 24)
    path = tmp_path / 'folder' / 'x.pth'
    path.parent.mkdir()
    value = {'a': tensor(held(6, key='../../secret'), (6,))}
    pth_files.write_zip(path, value, root='../..')
    np.testing.assert_array_equal(outcome(path)['a'], np.arange(6))  # the archive's own entry
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/data.pkl', pth_files.pickled(value))
    assert 'lacks data/../../secret' in outcome(path)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'pickle exhausted'),
        (b'not a pickle', 'opcode'),
        (b'\x80\x02K\x01.', 'begins like no file'),
        (b'PK\x03\x04', 'archive|zip'),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    path = tmp_path / 'x.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read(path)


def test_missing_files_folders_and_big_endian_numbers_are_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe')  # nobody writes to it
    for path in (tmp_path / 'x.pth', tmp_path, tmp_path / 'pipe'):
        with pytest.raises(UserError, match='cannot be read'):
            read(path)
    path = tmp_path / 'y.pth'
    pth_files.write_zip(path, {}, byteorder=b'big')
    assert 'big-endian' in outcome(path)
    pth_files.write_legacy(path, {}, little_endian=False)
    assert 'big-endian' in outcome(path)
    pth_files.write_legacy(path, {'a': WEIGHT}, keys=[])
    assert 'lacks the storage 0' in outcome(path)
    pth_files.write_legacy(path, {'a': WEIGHT}, keys=['0', '1'])
    assert 'kind unknown here' in outcome(path)


# ---- Mutations. --------------------------------------------------------------------------------


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file after a fault: bits, bytes or a whole piece changed, moved, lost or doubled."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(data)))
        length = int(rng.integers(1, 40))
        match rng.integers(6):
            case 0:
                data[start] ^= 1 << rng.integers(8)
            case 1:
                data[start : start + length] = rng.bytes(length)
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = data[start : start + length]
            case 4:
                del data[start:]
                data = data or bytearray(b'x')
            case 5:
                value = int(rng.choice([0, 1, 0x7F, 0xFF]))
                data[start : start + 4] = bytes([value] * 4)
    return bytes(data)


def example() -> dict:
    """A checkpoint as projects publish it: weights, moments, numbers of numpy, text."""
    shared = pth_files.storage(np.arange(24, dtype=np.float32), '0')
    scalar = Call(
        Name('numpy.core.multiarray', 'scalar'), (Call(Name('numpy', 'dtype'), ('f8',)), 'x')
    )
    return {
        'state_dict': Built(
            {
                'linear0.weight': tensor(shared, (4, 5), 4),
                'linear0.bias': tensor(shared, (4,), 0, (6,)),
                'steps': tensor(pth_files.storage(np.array(5), '1'), ()),
            },
            {'_metadata': {}},
        ),
        'optimizer': {'state': {0: {'step': 5}}, 'lr': [1e-4, True, None]},
        'best_fid': scalar,
    }  # fmt: skip


def check_mutations(path, write, count):
    write(path, example())
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(content, rng))
        found = outcome(path)
        if isinstance(found, str):
            refused += 1
            assert '\n' not in found
            assert len(found) < 600
        else:
            assert sum(array.nbytes for array in found.values()) < 2**16
    assert refused > count // 4


@BOTH
def test_mutated_files_give_a_sentence_or_values(tmp_path, write):
    check_mutations(tmp_path / 'x.pth', write, 400)


@pytest.mark.thorough
@BOTH
def test_five_thousand_mutated_files_give_a_sentence_or_values(tmp_path, write):
    check_mutations(tmp_path / 'x.pth', write, 5000)

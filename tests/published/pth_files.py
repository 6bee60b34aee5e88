"""Writes files as `torch.save` writes them, in both formats, without PyTorch."""

import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

KINDS = {
    'f8': 'DoubleStorage',
    'f4': 'FloatStorage',
    'f2': 'HalfStorage',
    'i8': 'LongStorage',
    'i4': 'IntStorage',
    'i2': 'ShortStorage',
    'i1': 'CharStorage',
    'u1': 'ByteStorage',
    'b1': 'BoolStorage',
}


class Name(NamedTuple):
    """What a pickle takes from a module."""

    module: str
    name: str


class Call(NamedTuple):
    called: Any
    arguments: tuple


class Persistent(NamedTuple):
    identity: tuple


class Built(NamedTuple):
    """An object with attributes, as a state dictionary has them."""

    value: Any
    state: Any


class Raw(NamedTuple):
    """Operations of a pickle that push one value."""

    operations: bytes


class Storage(NamedTuple):
    """Numbers on disk: `kind` is the class in `torch`, `content` their bytes."""

    kind: str
    key: str
    content: bytes
    count: int


def storage(array: np.ndarray, key: str) -> Storage:
    content = np.ascontiguousarray(array).tobytes()
    return Storage(KINDS[array.dtype.str[1:]], key, content, array.size)


def tensor(held: Storage, shape, offset=0, strides=None) -> Call:
    """A tensor; contiguous without `strides`, which count numbers."""
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    hooks = Call(Name('collections', 'OrderedDict'), ())
    arguments = (held, offset, tuple(shape), tuple(strides), False, hooks)
    return Call(Name('torch._utils', '_rebuild_tensor_v2'), arguments)


def pickled(value: Any, legacy: bool = False) -> bytes:
    """A pickle of protocol 2 of plain values and of the classes above."""
    return b'\x80\x02' + _operations(value, legacy) + b'.'


def _operations(value: Any, legacy: bool) -> bytes:
    def inner(part):
        return _operations(part, legacy)

    match value:
        case None:
            return b'N'
        case bool():
            return b'\x88' if value else b'\x89'
        case int():
            content = value.to_bytes(16, 'little', signed=True)
            return b'\x8a' + bytes([len(content)]) + content
        case float():
            return b'G' + struct.pack('>d', value)
        case str():
            content = value.encode()
            return b'X' + struct.pack('<I', len(content)) + content
        case Name(module, name):
            return f'c{module}\n{name}\n'.encode()
        case Call(called, arguments):
            return inner(called) + inner(tuple(arguments)) + b'R'
        case Persistent(identity):
            return inner(tuple(identity)) + b'Q'
        case Raw(operations):
            return operations
        case Built(built, state):
            return inner(built) + inner(state) + b'b'
        case Storage(kind, key, _, count):
            identity = 'storage', Name('torch', kind), key, 'cuda:0', count
            return inner(Persistent(identity + (None,) * legacy))
        case tuple():
            return b'(' + b''.join(map(inner, value)) + b't'
        case list():
            return b'](' + b''.join(map(inner, value)) + b'e'
        case dict():
            items = b''.join(inner(key) + inner(held) for key, held in value.items())
            return inner(Call(Name('collections', 'OrderedDict'), ())) + b'(' + items + b'u'
    raise TypeError(value)


def storages_in(value: Any) -> dict[str, Storage]:
    """All storages in a value by key, in the order in which they come."""
    if isinstance(value, Storage):
        return {value.key: value}
    found = {}
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    for part in value if isinstance(value, (tuple, list)) else []:
        found |= storages_in(part)
    return found


def write_zip(path, value, root='archive', compression=zipfile.ZIP_STORED, **entries) -> None:
    """The format since PyTorch 1.6. `entries` replace the archive's own by name."""
    held = {f'data/{key}': storage.content for key, storage in storages_in(value).items()}
    content = {'data.pkl': pickled(value), **held, 'version': b'3\n'}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, data in (content | entries).items():
            archive.writestr(f'{root}/{name}', data)


def write_legacy(path, value, magic=0x1950A86A20F9469CFC6C, keys=None, **system) -> None:
    """The format before."""
    held = storages_in(value)
    system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}} | system
    parts = [magic, 1001, system, value, list(held) if keys is None else keys]
    with open(path, 'wb') as file:
        file.writelines(pickled(part, legacy=True) for part in parts)
        for storage in held.values():
            file.write(storage.count.to_bytes(8, 'little') + storage.content)


WRITERS = {'zip': write_zip, 'legacy': write_legacy}


def seeded(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of tests/golden/published other than u and v: see its README for the rule."""
    name, rng = key.rpartition('.')[2], _generator(seed, key)
    if name == 'num_batches_tracked':
        return np.array(1000)
    if name in ('sigma', 'gamma'):
        return np.full(shape, 0.5, np.float32)
    if name in ('running_var', 'stored_var'):
        numbers = rng.uniform(0.5, 1.5, shape)
    elif name in ('running_mean', 'stored_mean'):
        numbers = 0.2 * rng.standard_normal(shape)
    elif len(shape) > 1:
        numbers = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    else:
        numbers = (name != 'bias') + 0.1 * rng.standard_normal(shape)
    return numbers.astype(np.float32)


def seeded_state(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All tensors of a network of tests/golden/published by key, for their shapes."""
    state = {}
    for key, shape in shapes.items():
        module, _, name = key.rpartition('.')
        if name in ('weight_u', 'weight_v', 'u0', 'sv0'):
            weight = 'weight_orig' if name.startswith('weight') else 'weight'
            u_name = 'u0' if weight == 'weight' else 'weight_u'
            matrix = state[f'{module}.{weight}']
            matrix = matrix.reshape(len(matrix), -1).astype(np.float64)
            u = _unit(_generator(seed, f'{module}.{u_name}').standard_normal(len(matrix)))
            v = _unit(matrix.T @ u)
            u = _unit(matrix @ v)
            found = {'weight_u': u, 'weight_v': v, 'u0': u, 'sv0': u @ matrix @ v}[name]
            state[key] = found.reshape(shape).astype(np.float32)
        else:
            state[key] = seeded(seed, key, shape)
    return state


def _generator(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)

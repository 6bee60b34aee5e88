"""Damages to the files of a folder: what disks, people and other programs do to them."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = tuple[str, Path, Callable[[Path], None]]  # name, file and what to do to it

VALUES = (None, [], [[[]]], {}, 'text', '', 10**400, 10**18, -1, 1e300, float('nan'), True, 0.5)


def damages(folder: Path) -> Iterator[Damage]:
    """Every damage to every file of a folder, in a fixed order; paths are relative to it."""
    for file in sorted(path for path in folder.rglob('*') if path.is_file()):
        path = file.relative_to(folder)
        for name, act in WHOLE.items():
            yield name, path, act
        if file.suffix in ('.json', '.jsonl', '.lock') or file.name in ('checks', '_METADATA'):
            yield from _of_nodes(file, path)


def some(folder: Path, every: int) -> list[Damage]:
    """One in `every` damages of each kind, and at least one damage to each file."""
    found = list(damages(folder))
    random.Random(0).shuffle(found)
    chosen: dict[Any, Damage] = {}
    for index, (name, path, act) in enumerate(found):
        chosen.setdefault(path, (name, path, act))
        if index % every == 0:
            chosen[index] = name, path, act
    return list(chosen.values())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    rng, content = random.Random(path.name), bytearray(path.read_bytes() or b'x')
    for _ in range(3):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _insert(content: bytes) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + content + whole[middle:])

    return act


def _append(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes() + content)


def _replace(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.unlink()
        make(path)

    return act


WHOLE: dict[str, Callable[[Path], None]] = {
    'empty': lambda path: path.write_bytes(b''),
    'truncated': _truncate,
    'bits flipped': _flip,
    'invalid UTF-8 inserted': _insert(b'\xff\xfe\n'),
    'NUL inserted': _insert(b'\0' * 5000),
    'foreign line appended': _append(b'{"step": 3, "note": "hello"}\n[]\n'),
    'zeros in its place': lambda path: path.write_bytes(b'\0' * path.stat().st_size),
    'nested deeply': lambda path: path.write_bytes(b'[' * 10_000 + b']' * 10_000),
    'half a character': lambda path: path.write_text('{"name": "\\ud800"}'),
    'a number of many digits': lambda path: path.write_text('9' * 10_000),
    'a folder in its place': _replace(Path.mkdir),
    'a broken link in its place': _replace(lambda path: path.symlink_to('nowhere/x')),
    'a link to itself in its place': _replace(lambda path: path.symlink_to(path.name)),
    'a pipe in its place': _replace(os.mkfifo),
    'huge': lambda path: os.truncate(path, 2**27),
    'removed': Path.unlink,
}


def _of_nodes(file: Path, path: Path) -> Iterator[Damage]:
    """Another value at each node of JSON."""
    line = file.read_text().splitlines()
    try:
        whole = json.loads(file.read_text())
    except ValueError:  # a file with a JSON value in each line
        whole = json.loads(line[-1])
    rng = random.Random(path.name)
    nodes = list(_nodes(whole))
    for node in [(), *rng.sample(nodes, min(len(nodes), 40))]:
        for value in rng.sample(VALUES, 3 if node else len(VALUES)):
            yield f'{list(node)} is {value!s:.20}', path, _set(node, value)


def _set(node: tuple, value: Any) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        *before, last = path.read_text().rstrip().splitlines()
        try:
            whole, before = json.loads(path.read_text()), []
        except ValueError:
            whole = json.loads(last)
        inner = root = [whole]
        for key in (0, *node)[:-1]:
            inner = inner[key]
        inner[(0, *node)[-1]] = value
        path.write_text('\n'.join([*before, json.dumps(root[0])]) + '\n')

    return act


def _nodes(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:2])
    for key, inner in items:
        yield from _nodes(inner, (*at, key))


def damaged_copy(folder: Path, copy: Path, damage: Damage) -> None:
    """Copies a folder and damages one file of the copy."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, symlinks=True)
    _, path, act = damage
    act(copy / path)

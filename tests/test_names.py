"""Names over all of Unicode and bytes: each works, or is refused before anything is written."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sagan_jax.data import class_folders
from sagan_jax.errors import UserError
from sagan_jax.images import read_square
from sagan_jax.run import lock, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import RunLog
from sagan_jax.system import paths
from sagan_jax.trained.sample_files import write_samples
from sagan_jax.viewing import report
from tests import tiny

ODD = [
    *('..', '.', '~', '-x', '--workdir', ' a', 'a ', 'a\nb', 'a\r', '\t', 'con', 'NUL.txt', 'aux'),
    *(
        'café',
        'cafe\u0301',
        '\u212b',
        '\u202egnp.exe',
        '\u200b',
        '\ufeff',
        '\x1b[31m',
        '\x7f',
        '\x85',
    ),
    *(
        'a' * 255,
        'a' * 256,
        'é' * 128,
        '😀' * 64,
        '%s',
        '{0}',
        '$HOME',
        '`x`',
        'a;b',
        '"',
        "'",
        'a,b',
    ),
    *('*', '?', '[1]', '\\', 'gs:', 'C:', 'a:b', '.lock', 'samples.json', '#', '\ud800', '\udcff'),
    *('a.png', 'a.jpg', '.png', 'a.npz', 'a.partial', 'config.json', '000007.png', '7', '٧'),
]
NAMES = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=(), exclude_characters='/'), min_size=1, max_size=90),
    st.binary(min_size=1, max_size=90).map(lambda name: os.fsdecode(name.replace(b'/', b'_'))),
)
CONFIG = tiny.config()
RECORD = json.loads(json.dumps(provenance.record(CONFIG)))
IMAGES = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3)


def one_sentence(error):
    text = str(error.value if hasattr(error, 'value') else error)
    assert text.isprintable(), text
    assert text.endswith('.'), text
    text.encode()


def model(class_names):
    """A model that draws `IMAGES`."""
    return SimpleNamespace(
        config=CONFIG,
        class_names=tuple(class_names),
        step=7,
        sha256='0' * 64,
        labels=lambda classes, n: np.arange(n, dtype=np.int32) % len(class_names),
        sample=lambda classes, n, seed, truncation: IMAGES[:n],
        stream=lambda indices, labels, seed, truncation: iter([IMAGES[indices]]),
    )


def every_name(test):
    """Draws a name, and tries each of `ODD`."""
    for name in ODD:
        test = example(name)(test)
    return settings(max_examples=30, deadline=None)(given(NAMES)(test))


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    """Makes an empty folder, two below one of its own."""

    def make():
        folder = tmp_path_factory.mktemp('names') / 'a' / 'b'
        folder.mkdir(parents=True)
        return folder

    return make


def test_workdirs(fresh):
    @every_name
    def check(name):
        parent = fresh()
        path = f'{parent}/{name}'
        try:
            paths.check_data_path(path, '--workdir')
        except UserError as error:
            one_sentence(error)
            assert not list(parent.iterdir())
            return
        run = RunFolder(Path(path))
        with lock.owned(run):
            run.write_record(RECORD)
            with RunLog(run, 0) as log:
                log.scalars(1, {'discriminator_loss': 0.5})
        report.write(run.path)
        assert run.record() == RECORD
        assert run.metrics() == [{'step': 1, 'discriminator_loss': 0.5}]
        assert {path.name for path in Path(path).iterdir()} >= {'config.json', 'report.html'}

    check()


def test_outputs(fresh):
    @every_name
    def check(name):
        for suffix in ('', '.png', '.npz'):
            parent = fresh()
            path = f'{parent}/{name}{suffix}'
            try:
                paths.check_path(path, '--output')
                write_samples(model(['x', 'y']), Path(path), n=2)
            except UserError as error:
                one_sentence(error)
                assert not list(parent.rglob('*'))
                continue
            assert os.path.exists(path)
            found = {path for path in parent.parent.parent.rglob('*') if path.suffix == '.png'}
            if Path(path).suffix not in ('.png', '.npz'):
                assert len(found) == 2
                assert all(each.resolve().is_relative_to(Path(path).resolve()) for each in found)

    check()


def test_class_names_of_a_config_from_elsewhere(fresh):
    @every_name
    def check(name):
        folder = fresh()
        run = RunFolder(folder)
        names = [name, 'x', f'{name}/../..']
        run.write_record(RECORD | {'data': {'name': name, 'count': 9, 'class_names': names}})
        try:
            assert run.class_names() == tuple(names)
        except UserError as error:  # half a character
            one_sentence(error)
            assert not name.isprintable()
            return
        report.write(folder)
        assert 'http-equiv' in run.report.read_text(encoding='utf-8')
        write_samples(model(names), folder / 'out', n=2)
        write_samples(model(names), folder / 'out.npz', n=2)
        with np.load(folder / 'out.npz') as arrays:
            assert [str(each).rstrip('\0') for each in arrays['class_names']] == [
                each.rstrip('\0') for each in names
            ]
        (first,), (second,) = (sorted(folder.rglob(f'00000{index}.png')) for index in range(2))
        assert first.parent != second.parent
        for path in (first, second):
            assert path.parent.parent.resolve() == (folder / 'out').resolve()

    check()


def test_class_folders_and_image_files(fresh):
    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, format='PNG')

    @every_name
    def check(name):
        if '\0' in name or name in ('.', '..') or len(name.encode(errors='replace')) > 250:
            return
        try:
            encoded = os.fsencode(name)
        except UnicodeEncodeError:  # no file system has such a name
            return
        parent = fresh()
        for path in (b'x/1.png', encoded + b'/1.png', b'x/' + encoded + b'.png'):
            place = os.path.join(os.fsencode(parent), path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            Path(os.fsdecode(place)).write_bytes(file.getvalue())
        try:
            found = class_folders.scan(str(parent))
        except UserError as error:
            one_sentence(error)
            return
        used = found.splits['train']
        expected = {f'{parent}/{path}' for path in ('x/1.png', f'{name}/1.png', f'x/{name}.png')}
        hidden = {path for path in expected if '/.' in path.removeprefix(str(parent))}
        assert {path for path, _ in used} == expected - hidden
        for path, label in used:
            np.testing.assert_array_equal(read_square(path, 32), IMAGES[0])
            assert os.path.basename(os.path.dirname(path)) in ('x', name), label
        label = tfds.features.ClassLabel(names=found.class_names)
        label.save_metadata(str(parent), 'label')
        again = tfds.features.ClassLabel(num_classes=len(found.class_names))
        again.load_metadata(str(parent), 'label')
        assert again.names == list(found.class_names)

    check()

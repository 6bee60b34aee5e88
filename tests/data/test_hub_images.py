"""Image data sets of the Hugging Face hub, from a stand-in for it."""

import importlib.util
import io
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sagan_jax import data
from sagan_jax.data import cifar10, hub_listing
from sagan_jax.errors import UserError
from sagan_jax.system import hub
from tests.data import cifar10_files, hub_server

CLASSES = ['cat', 'dog', 'eel']


@pytest.fixture
def server(monkeypatch):
    with hub_server.serving(monkeypatch) as server:
        yield server


def images_of(count, seed=0, size=32):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def small(count=6, seed=0, **keys):
    """A parquet file of images in three classes."""
    image, label = keys.get('image', 'image'), keys.get('label', 'label')
    files = [hub_server.encoded(each) for each in images_of(count, seed)]
    columns = {image: files, label: [n % 3 for n in range(count)]}
    return hub_server.parquet(columns, {label: CLASSES})


@pytest.fixture
def animals(server, dataset):
    """The configuration's `dataset` for a data set of six images and two to test."""
    files = {
        'data/train-00000-of-00002.parquet': small(4),
        'data/train-00001-of-00002.parquet': small(2, seed=1),
        'data/test-00000-of-00001.parquet': small(2, seed=2),
    }
    server.repositories['zoo/animals'] = hub_server.Repository(files)
    dataset.update(name='hf:zoo/animals', num_classes=3)
    return dataset


def contents(source):
    return {example['image'].tobytes(): int(example['label']) for example in source.examples}


def expected(*parts):
    return {
        image.tobytes(): n % 3
        for count, seed in parts
        for n, image in enumerate(images_of(count, seed))
    }


def test_all_files_of_both_splits_are_read(animals):
    source = data.load(animals)
    assert source.class_names == ('cat', 'dog', 'eel')
    assert contents(source) == expected((4, 0), (2, 1))
    assert contents(data.load(animals, 'test')) == expected((2, 2))


def as_cifar10(server, monkeypatch, tmp_path):
    """The same images as parquet on the hub and as the official archive."""
    images, labels = cifar10_files.made_up()
    archive = cifar10_files.packed(cifar10_files.files(images, labels))
    path = tmp_path / cifar10.ARCHIVE
    path.write_bytes(cifar10_files.accept(monkeypatch, archive))
    files = {}
    for name, part in (('train', slice(0, 20)), ('test', slice(20, 24))):
        columns = {
            'img': [hub_server.encoded(image) for image in images[part]],
            'label': labels[part].tolist(),
        }
        files[f'plain_text/{name}-00000-of-00001.parquet'] = hub_server.parquet(
            columns, {'label': list(cifar10.CLASS_NAMES)}
        )
    splits = [{'split': name, 'path': f'plain_text/{name}-*'} for name in ('train', 'test')]
    card = {'configs': [{'config_name': 'plain_text', 'data_files': splits}]}
    server.repositories['uoft-cs/cifar10'] = hub_server.Repository(files, card)
    return {
        'archive': {'name': 'cifar10', 'source_dir': str(path)},
        'parquet': {'name': 'hf:uoft-cs/cifar10'},
    }


def test_parquet_and_the_archive_are_stored_alike(server, dataset, monkeypatch, tmp_path):
    """And so does every run on them."""
    kinds = as_cifar10(server, monkeypatch, tmp_path)
    for split in ('train', 'test'):
        found = {}
        for kind, keys in kinds.items():
            dataset.update(keys)
            source = data.load(dataset, split)
            images, labels = data.all_examples(source)
            record = data.identity(source)
            del record['name']
            found[kind] = images.tobytes(), labels.tolist(), record
        assert found['archive'] == found['parquet']


def test_the_revision_is_recorded_and_can_be_pinned(server, animals):
    repository = server.repositories['zoo/animals']
    before = repository.commit('main')
    source = data.load(animals)
    assert source.name == f'hf:zoo/animals@{before} (image, label)'
    assert data.identity(source)['name'] == source.name
    repository.revisions['old'] = repository.revisions['main']
    repository.revisions['main'] = {'train.parquet': small(5, seed=9)}
    assert data.load(animals).name == source.name  # prepared before
    animals.data_dir += '2'
    assert contents(data.load(animals)) == expected((5, 9))
    for animals.revision in (before, 'old'):
        pinned = data.load(animals)
        assert pinned.name == source.name
        assert data.identity(pinned) == data.identity(source)


def test_prepared_data_need_no_network(server, animals):
    before = contents(data.load(animals))
    server.requests.clear()
    server.status = 500
    assert contents(data.load(animals)) == before
    animals.num_classes = None
    assert data.count_classes(animals) == 3
    assert server.requests == []


def test_each_file_is_downloaded_once_and_checked(server, animals, capsys):
    assert data.count_classes(animals) == 3  # with the first file
    data.load(animals)
    assert 'data--test-00000-of-00001.parquet: 100%' in capsys.readouterr().err
    fetched = [path for host, path, _ in server.requests if host == 'localhost']
    assert len(fetched) == len(set(fetched)) == 3
    downloads = Path(animals.data_dir) / 'downloads'
    damaged = next(downloads.rglob('*train-00001*'))
    damaged.write_bytes(b'damaged')
    animals.image_size = 16
    assert len(data.load(animals)) == 6
    assert sum(host == 'localhost' for host, _, _ in server.requests) == 4


def test_a_file_with_another_checksum_is_refused(server, animals):
    server.cut = 1
    with pytest.raises(UserError, match=r'SHA-256 \w{64}, and the hub has \w{64} .*: try again\.$'):
        data.load(animals)
    assert not list(Path(animals.data_dir).rglob('*.parquet'))


def test_the_token_is_sent_to_the_hub_alone(server, animals, monkeypatch):
    server.repositories['zoo/animals'].gated = True
    page = r'http://127.0.0.1:\d+/datasets/zoo/animals'
    with pytest.raises(
        UserError, match=rf'^The data set zoo/animals is gated: .*{page}, .*HF_TOKEN'
    ):
        data.load(animals)
    monkeypatch.setenv('HF_TOKEN', 'wrong')
    with pytest.raises(UserError, match=rf'401.*accept the conditions at {page} with the account'):
        data.load(animals)
    monkeypatch.setenv('HF_TOKEN', 'secret')
    server.requests.clear()
    assert len(data.load(animals)) == 6
    assert {(host, token) for host, _, token in server.requests} == {
        ('127.0.0.1', 'secret'),
        ('localhost', ''),
    }


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (
            {'name': 'hf:zoo/plants'},
            r'no access to a data set zoo/plants at revision main \(401 .*HF_TOKEN',
        ),
        ({'name': 'hf:animals'}, r'hf:animals names no data set .*: set .*=hf:OWNER/NAME or'),
        ({'name': 'hf:../../x'}, r'names no data set of the Hugging Face hub'),
        (
            {'name': 'hf:zoo/animals/wild'},
            r'wild has no configurations: set --config.dataset.name to hf:zoo/animals\.',
        ),
        ({'revision': 'v9'}, r'zoo/animals has no revision v9 on the hub: choose one of .*'),
        ({'image_key': 'photo'}, r'no column photo of images, only image: set .*\.image_key'),
        ({'label_key': 'kind'}, r'no column kind of classes, only label: set .*\.label_key'),
        ({'num_classes': 4}, r'The data set hf:zoo/animals has 3 classes but .*num_classes=3'),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(server, animals, keys, message):
    animals.update(keys)
    with pytest.raises(UserError, match=message) as caught:
        data.load(animals)
    assert '\n' not in str(caught.value)
    assert str(caught.value).endswith('.')
    assert not list(Path(animals.data_dir).rglob('dataset_info.json'))


@pytest.mark.parametrize('fault', [500, b'<html>', b'[]', b'{"sha": "main"}', b'{}'])
def test_a_hub_that_does_not_answer_or_is_none(server, animals, fault):
    if isinstance(fault, int):
        server.status, message = fault, r'does not answer at .*500.*: try again\.$'
    else:
        server.answer, message = fault, r'is not about a data set \(.*\): check HF_ENDPOINT\.$'
    with pytest.raises(UserError, match=message):
        data.load(animals)


def test_an_address_without_a_server(animals, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9/')
    with pytest.raises(
        UserError, match=r'^The hub does not answer at http://127.0.0.1:9/api/.*again'
    ):
        data.load(animals)


def test_usual_names_are_found(server, dataset):
    columns = {
        'img': [hub_server.encoded(image) for image in images_of(6)],
        'mask': [hub_server.encoded(image) for image in images_of(6, seed=5)],
        'coarse_label': [0] * 6,
        'fine_label': [n % 3 for n in range(6)],
    }
    names = {'fine_label': CLASSES, 'coarse_label': ['animal']}
    content = hub_server.parquet(columns, names)
    server.repositories['zoo/fine'] = hub_server.Repository({'train.parquet': content})
    dataset.update(name='hf:zoo/fine', num_classes=None)
    source = data.load(dataset)
    assert source.class_names == ('cat', 'dog', 'eel')
    assert contents(source) == expected((6, 0))
    dataset.update(image_key='mask', label_key='coarse_label')
    source = data.load(dataset)
    assert source.class_names == ('animal',)
    assert {*contents(source)} == {image.tobytes() for image in images_of(6, seed=5)}
    dataset.update(image_key='img', label_key='')
    assert data.load(dataset).class_names == ('zoo/fine',)


def test_without_classes(server, dataset):
    columns = {'photo': [hub_server.encoded(image) for image in images_of(3)], 'age': [7, 8, 9]}
    server.repositories['zoo/old'] = hub_server.Repository(
        {'a.parquet': hub_server.parquet(columns)}
    )
    dataset.update(name='hf:zoo/old', num_classes=1)
    assert contents(data.load(dataset)) == {image.tobytes(): 0 for image in images_of(3)}


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['x', 'y'], r'several columns of images, x, y: choose one with .*\.image_key=NAME'),
        ([], r'hf:zoo/odd has no column of images, only a, b: choose another'),
    ],
)
def test_columns_that_cannot_be_told(server, dataset, names, message):
    columns = {name: [hub_server.encoded(images_of(1)[0])] for name in names}
    columns |= {'a': [1], 'b': [2]}
    content = hub_server.parquet(columns, {'a': ['one', 'two'], 'b': ['x', 'y', 'z']})
    server.repositories['zoo/odd'] = hub_server.Repository({'train.parquet': content})
    dataset.update(name='hf:zoo/odd')
    with pytest.raises(UserError, match=message):
        data.load(dataset)
    if names:
        dataset.image_key = 'x'
        with pytest.raises(UserError, match=r'several columns of classes, a, b: choose one with'):
            data.load(dataset)


@pytest.mark.parametrize('names', [['a', 'b', 'a '], ['a', '', ''], []])
def test_classes_that_cannot_be_told_apart(server, dataset, names):
    columns = {'image': [hub_server.encoded(images_of(1)[0])], 'label': [0]}
    content = hub_server.parquet(columns, {'label': names})
    server.repositories['zoo/odd'] = hub_server.Repository({'train.parquet': content})
    dataset.update(name='hf:zoo/odd', num_classes=None)
    with pytest.raises(UserError, match=r'the same one for several classes of label: leave out'):
        data.count_classes(dataset)
    dataset.label_key = ''
    assert data.count_classes(dataset) == 1


def test_what_the_hub_has_converted_is_found(server, dataset):
    repository = hub_server.Repository({'images.zip': b'PK'})
    server.repositories['zoo/zipped'] = repository
    dataset.update(name='hf:zoo/zipped', num_classes=3)
    with pytest.raises(UserError, match=r'zoo/zipped has no parquet files on the hub: choose'):
        data.load(dataset)
    converted = {'default/partial-train/0000.parquet': small(6)}
    repository.revisions['refs/convert/parquet'] = converted
    with pytest.raises(UserError, match=r'converted only a part of hf:zoo/zipped'):
        data.load(dataset)
    converted['default/train/0000.parquet'] = converted.pop('default/partial-train/0000.parquet')
    source = data.load(dataset)
    assert contents(source) == expected((6, 0))
    assert repository.commit('refs/convert/parquet') in source.name


def test_images_that_cannot_be_read_and_missing_classes_are_counted(server, animals):
    files = [hub_server.encoded(image) for image in images_of(4)]
    whole = {'image': files, 'label': [0, 1, 2, 0]}
    for change, message in (
        (
            {'image': [files[0], b'', None, b'GIF']},
            r'Cannot read 3 images, in row 1 .*empty.*row 3',
        ),
        (
            {'label': [0, -1, None, 1]},
            r'2 of 4 images of the split train have no class, .* row 1: ',
        ),
    ):
        content = hub_server.parquet(whole | change, {'label': CLASSES})
        server.repositories['zoo/animals'].revisions['main'] = {'train.parquet': content}
        with pytest.raises(UserError, match=message):
            data.load(animals)
    server.repositories['zoo/animals'].revisions['main'] = {'train.parquet': small(4)[:-9]}
    with pytest.raises(UserError, match=r'train.parquet cannot be read \(.*: remove it, and it is'):
        data.load(animals)
    assert not list(Path(animals.data_dir).rglob('dataset_info.json'))


def test_a_full_disk_during_preparation_is_named_and_leaves_nothing(animals, monkeypatch):
    """A file system that is full cannot be had here: it would end a process that maps to write."""
    modes = []

    def memmap(file, dtype, mode, **keys):
        modes.append(mode)
        return mapped(file, dtype, mode, **keys)

    mapped = np.memmap
    monkeypatch.setattr(np, 'memmap', memmap)
    animals.image_size = 128
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a download; not six images
    try:
        with pytest.raises(UserError, match=r'hf cannot be written \(File too large\): ') as e:
            data.load(animals)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert '--config.dataset.data_dir=FOLDER' in str(e.value)
    assert not [path for path in Path(animals.data_dir, 'hf').iterdir() if path.name != '.lock']
    assert len(data.load(animals)) == 6
    assert set(modes) == {'r'}


def test_images_become_squares_as_those_of_a_folder_do(server, dataset, tmp_path):
    photograph = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, 'JPEG')
    columns = {'image': [file.getvalue()]}
    server.repositories['zoo/one'] = hub_server.Repository(
        {'t.parquet': hub_server.parquet(columns)}
    )
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'a.jpg').write_bytes(file.getvalue())
    dataset.update(num_classes=None, image_size=24)
    found = []
    for dataset.name, dataset.source_dir in (
        ('hf:zoo/one', None),
        ('image_folder', str(tmp_path / 'own')),
    ):
        source = data.load(dataset)
        found.append((source.content, source.examples[0]['image'].tobytes()))
    assert found[0] == found[1]


def test_tensorflow_is_not_used(animals, monkeypatch):
    hub_server.hide_tensorflow(monkeypatch)
    assert importlib.util.find_spec('tensorflow') is None
    assert len(data.load(animals)) == 6


NAMES = st.text('abcxyz019_+-.', min_size=1, max_size=8).filter(lambda name: name[0] not in '.-')
SPLITS = st.sets(st.sampled_from(['test', 'validation'])).map(lambda found: {'train'} | found)


@given(
    configs=st.dictionaries(NAMES, SPLITS, min_size=1, max_size=4),
    files=st.integers(1, 3),
    layout=st.sampled_from(['card', 'converted']),
    draw=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_files_of_each_configuration_are_its_own(configs, files, layout, draw):
    """However the repository says which they are."""
    pattern = {'card': '{}/{}-{:05}-of-9.parquet', 'converted': '{}/{}/{:04}.parquet'}[layout]
    paths = {
        config: {
            split: [pattern.format(config, split, n) for n in range(files)] for split in splits
        }
        for config, splits in configs.items()
    }
    every = [path for splits in paths.values() for shards in splits.values() for path in shards]
    default = draw.draw(st.none() | st.sampled_from(sorted(configs)))
    entries = [
        {
            'config_name': config,
            'data_files': [{'split': s, 'path': f'{config}/{s}-*'} for s in splits],
            'default': config == default,
        }
        for config, splits in configs.items()
    ]
    every = draw.draw(st.permutations(every))
    card = {'configs': entries} if layout == 'card' else {}
    repository = hub.Repository(
        'zoo/animals', '0' * 40, dict.fromkeys(every), 'datasets', card=card
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, 'find', lambda *_: repository)
        for config, splits in paths.items():
            found = hub_listing.find(f'hf:zoo/animals/{config}', None)
            held_out = splits.get('validation') or splits.get('test')
            assert found.config == config
            assert [*found.splits['train']] == splits['train']
            assert [*found.splits.get('test', ())] == (held_out or [])
        usual = (
            default if layout == 'card' and default else next(iter({'default'} & {*configs}), None)
        )
        with pytest.raises(UserError, match=r'has no configuration w@ld, only .*: set'):
            hub_listing.find('hf:zoo/animals/w@ld', None)
        if len(configs) > 1 and not usual:
            with pytest.raises(UserError, match=r'has several configurations, .*: set'):
                hub_listing.find('hf:zoo/animals', None)
        else:
            (only, *_) = [usual] if usual else configs
            assert hub_listing.find('hf:zoo/animals', None).config == only

import itertools
from pathlib import Path

import numpy as np
import pytest

from sagan_jax import data
from sagan_jax.errors import UserError


def source_of(count, labels=None):
    """A source in memory whose images have their index in the first pixel."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    labels = np.arange(count) % 3 if labels is None else labels
    examples = [{'image': i, 'label': np.int64(n)} for i, n in zip(images, labels, strict=True)]
    return source_from(examples)


def source_from(examples):
    return data.Source(
        examples, ('a', 'b', 'c'), 8, name='made/1', split='train', folder=Path(), content=None
    )


def rows(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


def stream(source, seed, batch_size, stop, start=0):
    batches = data.batches(source, seed, batch_size, start, stop)
    return np.concatenate([rows(images) for images, _ in batches])


def test_shapes_types_and_labels():
    source = source_of(50)
    images, labels = next(data.batches(source, seed=0, batch_size=16))
    assert images.shape == (16, 8, 8, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (16,)
    assert labels.dtype == np.int32
    for image, label, row in zip(images, labels, rows(images), strict=True):
        np.testing.assert_array_equal(image, source.examples[row]['image'])
        assert label == source.examples[row]['label']


@pytest.mark.parametrize(('count', 'batch_size'), [(60, 12), (50, 16), (7, 20), (1, 3), (64, 1)])
def test_every_epoch_is_a_permutation(count, batch_size):
    source = source_of(count)
    epochs = stream(source, 3, batch_size, stop=-(-4 * count // batch_size))[: 4 * count]
    epochs = epochs.reshape(4, count)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (4, 1)))
    if count > 1:
        assert len({tuple(epoch) for epoch in epochs} | {tuple(range(count))}) == 5


def test_a_batch_depends_on_seed_and_step_only():
    source = source_of(50)
    whole = list(data.batches(source, 5, 16, stop=30))
    assert len(whole) == 30
    for start in (0, 1, 3, 17, 29):
        again = list(data.batches(source, 5, 16, start, 30))
        assert len(again) == 30 - start
        for (images, labels), (images_again, labels_again) in zip(
            whole[start:], again, strict=True
        ):
            np.testing.assert_array_equal(images, images_again)
            np.testing.assert_array_equal(labels, labels_again)


def test_far_ahead_without_replaying():
    source = source_of(50)
    far = 10**9  # 320 million epochs; replaying them would never end
    images, _ = next(data.batches(source, 0, 16, start=far))
    np.testing.assert_array_equal(rows(images), stream(source, 0, 16, far + 1, start=far))


def test_batch_size_does_not_change_the_order():
    source = source_of(50)
    np.testing.assert_array_equal(stream(source, 1, 16, 25), stream(source, 1, 40, 10))


def test_seeds_differ():
    source = source_of(500)
    streams = [stream(source, seed, 500, 3) for seed in range(6)]
    for one, other in itertools.combinations(streams, 2):
        # By chance one in 500 rows agrees. Consecutive seeds share no epoch either.
        for shift in (0, 500):
            assert (one[shift:] == other[: len(other) - shift]).mean() < 0.02


def test_order_is_not_correlated_with_the_index():
    source = source_of(1000)
    order = stream(source, 0, 100, 10)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert (abs(np.diff(order)) == 1).mean() < 0.02


def test_endless_without_stop():
    batches = data.batches(source_of(10), 0, 4)
    assert len(list(itertools.islice(batches, 200))) == 200


def test_only_the_chosen_rows_of_a_batch_are_read():
    source = source_of(30)
    wanted = np.array([1, 2, 9])
    read = set()

    class Recorded(list):
        def __getitem__(self, index):
            read.add(index)
            return super().__getitem__(index)

    recorded = source_from(Recorded(source.examples))
    pairs = zip(
        data.batches(source, 5, 10, stop=3),
        data.batches(recorded, 5, 10, stop=3, rows=wanted),
        strict=True,
    )
    for (images, labels), (some_images, some_labels) in pairs:
        np.testing.assert_array_equal(some_images, images[wanted])
        np.testing.assert_array_equal(some_labels, labels[wanted])
    assert len(read) == 9  # of 30 in an epoch


class Broken(list):
    def __getitem__(self, index):
        if index == 7:
            raise OSError('a broken record')
        return super().__getitem__(index)


def test_an_unreadable_record_is_named():
    source = source_of(20)
    broken = source_from(Broken(source.examples))
    with pytest.raises(UserError, match=r'Example 7 of .* cannot be read \(a broken record\)'):
        list(data.batches(broken, 0, 4, stop=5))


def test_a_damaged_file_is_an_error(dataset):
    source = data.load(dataset, 'test')
    (shard,) = Path(dataset.data_dir).rglob('shapes-test*00000*')
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50_000] = bytes(50_000)
    shard.write_bytes(content)
    for read in (
        lambda: list(data.batches(source, 0, 100, stop=20)),
        lambda: data.load(dataset, 'test'),
    ):
        with pytest.raises(UserError, match=r'cannot be read \(.*Corrupted.* to prepare it again'):
            read()


def test_summary():
    labels = np.array([0] * 60 + [1] * 35 + [2] * 5)
    source = source_of(100, labels)
    whole = data.summary(source, seed=0, per_class=8)
    assert whole.num_images == 100
    np.testing.assert_array_equal(whole.label_counts, [60, 35, 5])
    pixels = np.stack([example['image'] for example in source.examples])
    assert (whole.minimum, whole.maximum) == (pixels.min(), pixels.max())
    assert [len(images) for images in whole.images] == [8, 8, 5]
    for label, images in enumerate(whole.images):
        assert (labels[rows(images)] == label).all()


def test_summary_of_the_first_images():
    source = source_of(700)
    part = data.summary(source, seed=4, per_class=8, num_images=250)
    assert part.num_images == 250
    order = stream(source, 4, 250, 1)
    np.testing.assert_array_equal(part.label_counts, np.bincount(order % 3))
    np.testing.assert_array_equal(rows(part.images[1]), order[order % 3 == 1][:8])


def test_summary_of_a_dark_data_set():
    dark = [{'image': np.full((8, 8, 3), 17, np.uint8), 'label': 1}] * 10
    result = data.summary(source_from(dark), seed=0, per_class=8)
    assert (result.minimum, result.maximum) == (17, 17)
    np.testing.assert_array_equal(result.label_counts, [0, 10, 0])
    assert [len(images) for images in result.images] == [0, 8, 0]


@pytest.mark.parametrize('batch_size', [1, 7, 30, 64])
def test_one_pass_reads_all_examples_in_order(batch_size):
    source = source_of(30)
    images, labels = zip(*data.one_pass(source, batch_size), strict=True)
    assert [len(batch) for batch in images[:-1]] == [batch_size] * (len(images) - 1)
    np.testing.assert_array_equal(rows(np.concatenate(images)), np.arange(30))
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(30) % 3)


def test_index_batches_are_the_same_batches():
    source = source_of(30)
    images, labels = data.all_examples(source)
    pairs = zip(
        data.batches(source, 5, 16, start=1, stop=6),
        data.index_batches(source, 5, 16, start=1, stop=6),
        strict=True,
    )
    for (expected, expected_labels), (chosen,) in pairs:
        assert chosen.dtype == np.int32
        np.testing.assert_array_equal(images[chosen], expected)
        np.testing.assert_array_equal(labels[chosen], expected_labels)

"""TensorBoard reads the files of events as they were written."""

import io
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from sagan_jax.run import event_file
from sagan_jax.run.event_file import EventFile

POINTS = st.dictionaries(
    st.text('abz09_', min_size=1),
    st.floats(allow_nan=False, width=32),
    min_size=1,
    max_size=4,
)


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@settings(max_examples=20, deadline=None)
@given(st.lists(POINTS, max_size=4))
def test_curves(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp('run') / 'tensorboard'
    before = time.time()
    events = EventFile(folder)
    for step, values in enumerate(rows):
        events.add(step, event_file.scalars(values))
    found = read(folder)  # although the file is still open
    events.close()
    assert set(found.Tags()['scalars']) == {name for values in rows for name in values}
    for name in found.Tags()['scalars']:
        expected = [(step, values[name]) for step, values in enumerate(rows) if name in values]
        points = found.Scalars(name)
        assert [(point.step, point.value) for point in points] == expected
        assert all(before <= point.wall_time <= time.time() for point in points)


def test_images(tmp_path):
    rng = np.random.default_rng(0)
    shown = {step: rng.integers(0, 256, (9, 7, 3), np.uint8) for step in (0, 3)}
    events = EventFile(tmp_path)
    for step, pixels in shown.items():
        events.add(step, event_file.image('samples', pixels))
    events.close()
    found = read(tmp_path).Images('samples')
    assert [image.step for image in found] == list(shown)
    for image in found:
        assert (image.height, image.width) == (9, 7)
        with Image.open(io.BytesIO(image.encoded_image_string)) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded), shown[image.step])


def test_two_files_of_a_second_are_two(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file.time, 'time', lambda: 1.8e9)
    for step in range(12):
        EventFile(tmp_path).add(step, event_file.scalars({'loss': step}))
    assert len(list(tmp_path.iterdir())) == 12
    assert {point.step for point in read(tmp_path).Scalars('loss')} == set(range(12))


# Of RFC 3720, B.4.
@pytest.mark.parametrize(
    ('content', 'crc'),
    [
        (bytes(32), 0x8A9136AA),
        (b'\xff' * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_crc_32c(content, crc):
    (masked,) = struct.unpack('<I', event_file.record(content)[-4:])
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == crc


@settings(max_examples=50, deadline=None)
@given(st.binary(), st.integers(min_value=0), st.integers(1, 255))
def test_a_record_is_read_whole_or_not_at_all(tmp_path_factory, content, where, change):
    record = event_file.record(content)
    damaged = bytearray(record)
    damaged[where % len(record)] ^= change
    path = tmp_path_factory.mktemp('records') / 'records'
    path.write_bytes(record + bytes(damaged))
    reader = PyRecordReader_New(str(path))
    reader.GetNext()
    assert reader.record() == content
    with pytest.raises(errors.DataLossError):
        reader.GetNext()

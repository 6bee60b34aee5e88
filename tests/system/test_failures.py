"""Failures of disks, networks and memory are known by any type, and nothing else is."""

import errno
import os
import resource
import zipfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import orbax.checkpoint as ocp
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from sagan_jax.errors import UserError
from sagan_jax.system import failures
from sagan_jax.system.files import atomic_path

FULL = ('ENOSPC', 'EDQUOT', 'EROFS', 'EFBIG')
PASSING = ('EIO', 'ESTALE', 'ETIMEDOUT', 'ECONNRESET', 'EHOSTUNREACH')
OTHER = ('EACCES', 'ENOENT', 'EINVAL', 'EEXIST')
TYPES = (OSError, RuntimeError, ValueError, jax.errors.JaxRuntimeError)


def raised(name, kind, wraps):
    """An exception with the text of the system, which others of `wraps` hide."""
    number = getattr(errno, name)
    text = f'RESOURCE_EXHAUSTED: write() failed: [Errno {number}] {os.strerror(number)}; at byte 9'
    error = OSError(number, os.strerror(number)) if kind is OSError else kind(text)
    for is_cause, outer in wraps:
        hidden, error = error, outer('something\nelse')
        if is_cause:
            error.__cause__ = hidden
        else:
            error.__context__ = hidden
    return error


WRAPS = st.lists(st.tuples(st.booleans(), st.sampled_from(TYPES[1:])), max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FULL), st.sampled_from(TYPES), WRAPS)
def test_a_full_disk_is_an_error_of_the_users_in_any_type(name, kind, wraps):
    sentence, status = failures.explain(raised(name, kind, wraps))
    assert status == 2
    assert 'cannot be written' in sentence
    assert 'free disk space' in sentence
    assert '\n' not in sentence
    with (
        pytest.raises(UserError, match=rf'^a\.npz .*\({os.strerror(getattr(errno, name))}\)'),
        failures.writing('a.npz', 'another --output'),
    ):
        raise raised(name, kind, wraps)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PASSING), st.sampled_from(TYPES), WRAPS)
def test_a_broken_connection_may_be_tried_again_in_any_type(name, kind, wraps):
    error = raised(name, kind, wraps)
    if kind is not OSError:
        error = type(error)(str(error).replace('RESOURCE_EXHAUSTED', 'UNAVAILABLE'))
        error = raised(name, OSError, wraps) if wraps else error
    sentence, status = failures.explain(error)
    assert (status, '\n' in sentence) == (75, False)
    assert 'give the same command again' in sentence
    assert failures.is_passing(error)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(OTHER), WRAPS)
def test_other_errors_are_no_such_failures(name, wraps):
    assert failures.explain(raised(name, OSError, wraps)) is None
    assert failures.explain(KeyError('No space')) is None


def test_memory_of_host_and_device():
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED') as of_device:
        jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(2**46, np.int8) + 1)())
    with pytest.raises(MemoryError) as of_host:
        np.ones(2**58)
    for found in (of_device, of_host):
        sentence, status = failures.explain(found.value)
        assert status == 2
        assert sentence.startswith('There is not enough memory (')
        assert '\n' not in sentence


def test_the_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match='No space') as error, atomic_path(tmp_path / 'a.png'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    sentence, _ = failures.explain(error.value)
    assert sentence.startswith(f'{tmp_path}/a.png cannot be written (No space left on device): ')


# ---- What libraries raise on a full disk, in the versions that are installed. --------------------

BLOCK = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)


def array_record(path):
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for row in BLOCK:
        writer.write(row.tobytes())
    writer.close()


def orbax(path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), {'a': BLOCK})


def arrays_in_a_zip(path):
    with zipfile.ZipFile(path, 'w') as archive, archive.open('a.npy', 'w') as file:
        np.lib.format.write_array(file, BLOCK)


def figure(path):
    drawn, axes = plt.subplots()
    axes.imshow(BLOCK)
    try:
        drawn.savefig(path)
    finally:
        plt.close(drawn)


WRITERS = {
    'array_record': array_record,
    'orbax': orbax,
    'numpy.npz': lambda path: np.savez(path, a=BLOCK),
    'zip.npz': arrays_in_a_zip,
    'safetensors': lambda path: save_file({'a': BLOCK}, path),
    'pillow.png': lambda path: Image.fromarray(BLOCK).save(path),
    'matplotlib.png': figure,
    'matplotlib.pdf': figure,
}


@pytest.mark.parametrize('name', WRITERS)
def test_every_library_that_writes_for_us_is_understood(name, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(Exception) as found:  # noqa: PT011 - the types are the point
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sentence, status = failures.explain(found.value)
    assert status == 2
    assert 'File too large' in sentence

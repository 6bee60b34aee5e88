"""CIFAR-10's archive with a few made-up images."""

import hashlib
import io
import tarfile

import numpy as np

from sagan_jax.data import cifar10

PER_FILE = 4
NAMES = [f'data_batch_{number}.bin' for number in range(1, 6)] + ['test_batch.bin']


def made_up(seed=0):
    """Images uint8 [5·4 + 4, 32, 32, 3] and labels in the order of the archive's files."""
    rng = np.random.default_rng(seed)
    count = PER_FILE * len(NAMES)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count)


def records(images, labels):
    """The bytes of a file: each label, and the planes of its image, pixel by pixel."""
    content = bytearray()
    for image, label in zip(images, labels, strict=True):
        content.append(label)
        for channel in range(3):
            for row in image:
                content += bytes(pixel[channel] for pixel in row)
    return bytes(content)


def files(images, labels):
    """The archive's files by name."""
    parts = [slice(PER_FILE * n, PER_FILE * (n + 1)) for n in range(len(NAMES))]
    found = {
        f'cifar-10-batches-bin/{name}': records(images[part], labels[part])
        for name, part in zip(NAMES, parts, strict=True)
    }
    found['cifar-10-batches-bin/batches.meta.txt'] = '\n'.join(cifar10.CLASS_NAMES).encode()
    return found


def packed(files):
    """The files as tar.gz, in another order than that of their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for name, content in sorted(files.items(), reverse=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def accept(monkeypatch, archive):
    """Makes an archive of a few images the official one."""
    monkeypatch.setattr(cifar10, 'IMAGES_PER_FILE', PER_FILE)
    monkeypatch.setattr(cifar10, 'SHA256', hashlib.sha256(archive).hexdigest())
    return archive

"""CIFAR-10 from the binary archive of its authors.

A record is a byte for the class and 3072 for the image: its red plane, then green, then blue.
"""

import dataclasses
import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from sagan_jax.data import from_tfds, preparing
from sagan_jax.data.preparing import Shard
from sagan_jax.errors import UserError
from sagan_jax.system.download import download
from sagan_jax.system.untrusted import open_file, reason

ARCHIVE = 'cifar-10-binary.tar.gz'
URL = f'https://www.cs.toronto.edu/~kriz/{ARCHIVE}'
SHA256 = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'  # as TFDS has it
CLASS_NAMES = (
    *('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'),
)
SIZE = 32
IMAGES_PER_FILE = 10_000

_RECORD = 1 + 3 * SIZE**2  # bytes
_FILES = {
    'train': tuple(f'cifar-10-batches-bin/data_batch_{number}.bin' for number in range(1, 6)),
    'test': ('cifar-10-batches-bin/test_batch.bin',),
}


@dataclasses.dataclass
class Cifar10Config(tfds.core.BuilderConfig):
    """Where the archive is."""

    given: Path | None = None  # the archive, or the folder that it is in
    downloads: Path = Path()  # where it is downloaded to if it is not given


class Cifar10(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS builder. Stores the images in the order of TFDS's own, which needs TensorFlow."""

    name = 'cifar10'
    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # TFDS downloads nothing

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'The images of {URL}.',
            features=preparing.features(SIZE, CLASS_NAMES),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        del dl_manager
        config = self.builder_config
        splits = read(_archive(config.given, config.downloads))
        return {
            split: preparing.shards(_examples(split, images, labels), len(images), images[0].size)
            for split, (images, labels) in splits.items()
        }


def builder(source: str | None, downloads: Path, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Creates the builder. Downloads and prepares nothing.

    It is TFDS's own if that has prepared the same images, as for an earlier version.

    Args:
      source: the archive, or the folder that it is in; None for a download.
      downloads: the folder to download to.
      data_dir: the folder of prepared data.
    """
    of_tfds = from_tfds.already_prepared(Cifar10.name, data_dir)
    if of_tfds:
        return of_tfds
    given = Path(source).expanduser() if source else None
    config = Cifar10Config(name='archive', given=given, downloads=downloads)
    return Cifar10(config=config, data_dir=data_dir, file_format='array_record')


def read(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the official archive. Writes nothing.

    Returns:
      for each split images uint8 [N, 32, 32, 3] and labels uint8 [N], in the order of the archive.

    Raises:
      UserError: if there is no such file, or if it is another one or damaged.
    """
    try:
        with open_file(archive) as file:
            _check_sha256(hashlib.file_digest(file, 'sha256').hexdigest(), str(archive))  # type: ignore[arg-type]
            file.seek(0)
            contents = _members(archive, file)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f'{archive} cannot be read ({reason(error)}): set --config.dataset.source_dir to '
            f'{ARCHIVE}, or leave it out for a download.'
        ) from error
    splits = {}
    for split, names in _FILES.items():
        records = np.concatenate(
            [np.frombuffer(contents[name], np.uint8).reshape(-1, _RECORD) for name in names]
        )
        planes = records[:, 1:].reshape(-1, 3, SIZE, SIZE)
        splits[split] = planes.transpose(0, 2, 3, 1), records[:, 0]
    return splits


def _members(archive: Path, file: IO[bytes]) -> dict[str, bytes]:
    """The files that hold images, by name. Nothing is extracted to disk."""
    wanted = [name for names in _FILES.values() for name in names]
    size = _RECORD * IMAGES_PER_FILE
    found = {}
    with gzip.open(file) as unpacked, tarfile.open(fileobj=unpacked, mode='r|') as tar:
        for member in tar:
            if member.name in wanted and member.isfile() and member.size == size:
                content = tar.extractfile(member)
                assert content  # of a file
                found[member.name] = content.read()
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f'{archive} has no {missing[0]} of {size:,} bytes: download it again.')
    return found


def _archive(given: Path | None, downloads: Path) -> Path:
    if given:
        return given / ARCHIVE if given.is_dir() else given
    path = downloads / ARCHIVE
    if not path.exists():
        download(
            URL,
            path,
            lambda sha256: _check_sha256(sha256, URL),
            'download it on another machine and set --config.dataset.source_dir to the file',
        )
    return path


def _check_sha256(sha256: str, where: str) -> None:
    if sha256 != SHA256:
        raise UserError(
            f'{where} is not {ARCHIVE} as its authors published it (SHA-256 {sha256}, expected '
            f'{SHA256}): download {URL} again.'
        )


def _examples(
    split: str, images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    order = preparing.tfds_order(split, len(images))
    for index in tqdm(order, desc=f'Preparing {split}', unit=' images'):
        yield index, {'image': images[index], 'label': int(labels[index])}

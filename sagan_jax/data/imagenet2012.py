"""ImageNet (ILSVRC 2012) from its authors' tars, read as the class folders they are unpacked to.

FOLDER/ILSVRC2012_img_train.tar    of n01440764.tar, n01443537.tar, …: one for each class
FOLDER/ILSVRC2012_img_val.tar      of images alone, whose classes are known to TFDS; optional
"""

import hashlib
import os
from pathlib import Path

import tensorflow_datasets as tfds

from sagan_jax.data import from_tfds
from sagan_jax.data.archives import Archive, joined, open_archive
from sagan_jax.data.class_folders import Images, Listing
from sagan_jax.data.image_folder import FolderConfig, FolderOfImages
from sagan_jax.data.preparing import Shard
from sagan_jax.errors import UserError, printable
from sagan_jax.system.files import stamp
from sagan_jax.system.untrusted import reason

TRAIN, VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
LABELS = Path(tfds.core.tfds_path('datasets/imagenet2012'))  # comes with TFDS


class ImageNet2012(FolderOfImages, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS builder. Stores what `FolderOfImages` stores of the unpacked class folders."""

    name = 'imagenet2012'

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        self.builder_config.listing = scan(self.builder_config.listing)  # takes minutes
        return super()._shard_iterators_per_split(dl_manager)


def builder(source: str | None, image_size: int, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Creates the builder. Prepares nothing.

    It is TFDS's own if that has prepared the images.

    Args:
      source: the folder of the tars.
      image_size: of the squares that are stored.
      data_dir: the folder of prepared data.

    Raises:
      UserError: if the training images are neither prepared nor there.
    """
    of_tfds = from_tfds.already_prepared(ImageNet2012.name, data_dir)
    if of_tfds:
        return of_tfds
    if not source:
        raise UserError(
            f'The data set {ImageNet2012.name} has no dataset.source_dir: set '
            f'--config.dataset.source_dir=FOLDER to a folder with {TRAIN} and {VALIDATION} of '
            'https://image-net.org, or take the copy on the Hugging Face hub, '
            '--config.dataset.name=hf:ILSVRC/imagenet-1k.'
        )
    folder = Path(source).expanduser().absolute()
    digest = hashlib.sha256()
    for path in (folder / TRAIN, folder / VALIDATION):
        try:
            digest.update(os.fsencode(path) + repr(stamp(os.stat(path))).encode())
        except OSError as error:
            if path.name == TRAIN:
                raise UserError(
                    f'There is no {path} ({reason(error)}): set --config.dataset.source_dir to the '
                    f'folder with {TRAIN} and {VALIDATION}.'
                ) from error
    key = digest.hexdigest()[:16]
    listing = Listing(folder, _lines('labels.txt'), {}, False, key, key, ())
    config = FolderConfig(name=f'{image_size}px_{key}', listing=listing, image_size=image_size)
    return ImageNet2012(config=config, data_dir=data_dir, file_format='array_record')


def scan(listing: Listing) -> Listing:
    """Lists the images of both tars. Raises UserError if one is damaged or another file."""
    train = _open(listing.folder / TRAIN)
    folders = {path.stem: path for path in train.contents(train.path).folders}
    _check_names(train, folders, listing.class_names, '.tar')
    images: Images = [
        (entry.path, label)
        for label, name in enumerate(listing.class_names)
        for entry in train.contents(folders[name]).images
    ]
    path = listing.folder / VALIDATION
    if not os.path.exists(path):
        return listing._replace(splits={'train': images}, archive=train)
    validation = _open(path)
    labels = _lines('validation_labels.txt')
    names = [f'ILSVRC2012_val_{number:08}' for number in range(1, len(labels) + 1)]
    found = {Path(e.path).stem: e.path for e in validation.contents(path).images}
    _check_names(validation, found, names, '.JPEG')
    label_of = {name: label for label, name in enumerate(listing.class_names)}
    tests: Images = [
        (found[name], label_of[label]) for name, label in zip(names, labels, strict=True)
    ]
    tests.sort(key=lambda image: image[1])  # stable: by name in each class
    splits = {'train': images, 'test': tests}
    return listing._replace(splits=splits, archive=joined(train, validation))


def _open(path: Path) -> Archive:
    archive = open_archive(path, inner_tars=True)
    if archive.sequential:
        raise UserError(f'The archive {path} is compressed: expand it to a tar.')
    return archive


def _check_names(archive: Archive, found: dict, expected: tuple | list, suffix: str) -> None:
    different = sorted(found.keys() ^ {*expected})
    if different:
        lacks = 'has' if different[0] in found else 'lacks'
        raise UserError(
            f'{archive.path} is not the file of https://image-net.org, since it {lacks} '
            f'{printable(different[0])}{suffix}: download it again.'
        )


def _lines(name: str) -> tuple[str, ...]:
    try:
        return tuple((LABELS / name).read_text().split())
    except OSError as error:
        raise UserError(
            f'{LABELS / name}, which tensorflow-datasets 4.9.10 installs, cannot be read '
            f'({reason(error)}): install that version.'
        ) from error

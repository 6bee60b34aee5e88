"""The classes and splits of a folder of images, or of an archive of one.

    FOLDER/cat/….jpg    or    FOLDER/train/cat/….jpg
    FOLDER/dog/….png          FOLDER/test/cat/….jpg

A folder that holds nothing but one other folder is looked through. A test split may have the layout
of Tiny ImageNet: val/images/….JPEG, with classes in val/val_annotations.txt.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sagan_jax.data.archives import Archive, open_archive
from sagan_jax.errors import UserError, printable
from sagan_jax.image_scan import (
    DISK,
    Contents,
    Entry,
    PassedOver,
    Storage,
    images_below,
    suffixes,
)
from sagan_jax.system.files import stamp
from sagan_jax.system.names import canonical

Images = list[tuple[str, int]]  # (path, label)

# In any case. The first that exists is used.
_TRAIN_NAMES = ('train', 'training')
_TEST_NAMES = ('test', 'testing', 'validation', 'valid', 'val')

# Of Tiny ImageNet: in each line a file, its class, and a box, with tabs between them.
_ANNOTATIONS = 'val_annotations.txt'
_LONGEST = 2**26  # bytes of it that are read

# A folder in a class folder that has no images beside it may be called this, or as the class.
_WRAPPERS = ('images', 'image', 'imgs', 'img')

_EXPECTED = (
    'one folder of images per class is expected, as FOLDER/cat/1.jpg, or as FOLDER/train/cat/1.jpg '
    'and FOLDER/test/cat/2.jpg'
)


class Listing(NamedTuple):
    """The images found in a folder, or in an archive as if it were a folder."""

    folder: Path  # or the archive
    class_names: tuple[str, ...]  # sorted
    splits: dict[str, Images]  # of 'train' and, if it exists, 'test'
    flat: bool  # no class folders: all images are of one class
    key: str  # a hash of each image's absolute path, size and times
    key_0_1: str  # the same without the time that nobody can set, as version 0.1 had it
    passed_over: tuple[PassedOver, ...]
    archive: Archive | None = None  # that the images are in

    @property
    def storage(self) -> Storage:
        """What opens the images."""
        return self.archive.storage if self.archive else DISK


def scan(source_dir: str | os.PathLike | None) -> Listing:
    """Lists the images in the class folders of `source_dir`, a folder or an archive of one.

    An archive has the images, labels and order of the folder that it is unpacked to. Class folders
    whose names differ only in their Unicode form are one class.

    Raises:
      UserError: if there is no such folder or archive, if the archive cannot be used (see
        `open_archive`), if it or a class folder has no images or a name that is not UTF-8, if its
        layout is not recognised, or if a class of the test split is missing from the training
        split.
    """
    if not source_dir:
        raise UserError(
            'The data set image_folder has no dataset.source_dir: set '
            '--config.dataset.source_dir=FOLDER to a folder with one folder of images per class, '
            'or to a zip or tar archive of it.'
        )
    folder = Path(source_dir).expanduser().absolute()
    if not os.path.exists(folder):
        raise UserError(
            f'There is no folder or archive {folder}: check --config.dataset.source_dir.'
        )

    _check_name(folder)
    archive = None if os.path.isdir(folder) else open_archive(folder)
    root = (archive.storage if archive else DISK).contents(folder)
    passed_over: list[PassedOver] = []
    split_folders = _find_splits(_unwrapped(root, passed_over), passed_over)
    flat = not split_folders['train'].folders
    if flat:
        _check_class(folder)
    classes = {
        split: {canonical(folder.name): [found]} if flat else _find_classes(found, passed_over)
        for split, found in split_folders.items()
    }
    class_names = tuple(classes['train'])
    for split, folders in classes.items():
        for name in sorted(folders.keys() - class_names):
            raise UserError(
                f'There are images of {name} in {split_folders[split].path} but none in '
                f'{split_folders["train"].path}: give both the same class folders.'
            )

    digest, digest_0_1 = hashlib.sha256(), hashlib.sha256()
    splits: dict[str, Images] = {split: [] for split in classes}
    for split, folders in classes.items():
        for name, parts in folders.items():
            for part in parts:
                if name != (folder.name if flat else part.path.name):
                    digest.update(name.encode())  # stored by its label
                    digest_0_1.update(name.encode())
                for entry in _images_of(part, passed_over):
                    size, modified, changed = stamp(entry.stat())
                    line = os.fsencode(entry.path) + f'\0{size}\0{modified}\0'.encode()
                    digest_0_1.update(line)
                    digest.update(line + f'{changed}\0'.encode())
                    splits[split].append((entry.path, class_names.index(name)))
    return Listing(
        folder=folder,
        class_names=class_names,
        splits=splits,
        flat=flat,
        key=digest.hexdigest()[:16],
        key_0_1=digest_0_1.hexdigest()[:16],
        passed_over=tuple(passed_over),
        archive=archive,
    )


def _unwrapped(found: Contents, passed_over: list[PassedOver]) -> Contents:
    """Looks through folders that hold nothing but one folder of folders."""
    seen = set()
    while not found.images and len(found.folders) == 1:
        inner = found.storage.contents(found.folders[0])
        real = os.path.realpath(inner.path)
        if inner.images or not inner.folders or real in seen:
            break
        seen.add(real)
        passed_over += found.others
        found = inner
    return found


def _find_splits(root: Contents, passed_over: list[PassedOver]) -> dict[str, Contents]:
    """The folders of 'train' and, if there is one, 'test'."""
    trains, tests = (
        sorted(
            (folder for folder in root.folders if folder.name.lower() in names),
            key=lambda folder: names.index(folder.name.lower()),
        )
        for names in (_TRAIN_NAMES, _TEST_NAMES)
    )
    if not trains:
        return {'train': root}
    train = root.storage.contents(trains[0])
    others = [folder for folder in root.folders if folder not in (*trains, *tests)]
    if others and train.images:
        return {'train': root}  # a class may be called "train"
    if others or len(trains) > 1:
        raise UserError(
            f'The folder {root.path} has the training images in {train.path.name}, and beside it '
            f'{_some(folder for folder in root.folders if folder not in (trains[0], *tests))}: '
            f'{_EXPECTED}; move other folders elsewhere.'
        )
    passed_over += root.others
    passed_over += [PassedOver('images beside the splits', Path(e.path)) for e in root.images]
    splits = {'train': _unwrapped(train, passed_over)}
    if tests:
        found = [root.storage.contents(folder) for folder in tests]
        test = next(filter(_annotations, found), found[0])  # Tiny ImageNet's test has no classes
        passed_over += [
            _not_read('splits that are not read', other.path, root.storage)
            for other in found
            if other is not test
        ]
        splits['test'] = _unwrapped(test, passed_over)
    return splits


def _find_classes(split: Contents, passed_over: list[PassedOver]) -> dict[str, list[Contents]]:
    """The folders of each class, sorted by its name."""
    if _annotations(split) and len(split.folders) == 1:
        return _find_annotated(split, passed_over)
    passed_over += split.others
    passed_over += [PassedOver('images beside class folders', Path(e.path)) for e in split.images]
    classes: dict[str, list[Contents]] = {}
    for folder in split.folders:
        _check_name(folder)
        _check_class(folder)
        found = split.storage.contents(folder)
        classes.setdefault(canonical(folder.name), []).append(found)
    return dict(sorted(classes.items()))


def _annotations(split: Contents) -> list[Path]:
    """The file with the classes of a split's images, if there is one."""
    return [other.path for other in split.others if other.path.name == _ANNOTATIONS]


def _find_annotated(split: Contents, passed_over: list[PassedOver]) -> dict[str, list[Contents]]:
    """As `_find_classes`, where all images are in one folder and a file has their classes."""
    (path,), (folder,) = _annotations(split), split.folders
    found = split.storage.contents(folder)
    passed_over += [other for other in (*split.others, *found.others) if other.path != path]
    passed_over += [_not_read('nested folders', inner, found.storage) for inner in found.folders]
    passed_over += [PassedOver('images beside class folders', Path(e.path)) for e in split.images]
    try:
        with split.storage.open(path) as file:
            lines = [line.split('\t') for line in file.read(_LONGEST).decode().splitlines()]
        class_of = {line[0]: canonical(line[1]) for line in lines if line != ['']}
    except (ValueError, IndexError) as error:
        raise UserError(
            f'The file {path} has no image and class, with a tab between them, in each line: '
            'restore it.'
        ) from error
    classes: dict[str, list[Entry]] = {}
    for entry in found.images:
        name = os.path.basename(entry.path)
        if name not in class_of:
            raise UserError(f'The image {entry.path} has no class in {path}: restore the file.')
        classes.setdefault(class_of[name], []).append(entry)
    return {
        name: [found._replace(images=tuple(images), folders=(), others=())]
        for name, images in sorted(classes.items())
    }


def _images_of(found: Contents, passed_over: list[PassedOver]) -> tuple[Entry, ...]:
    """The images of one class folder, or of the folder `images` in it."""
    passed_over += found.others
    if not found.images and len(found.folders) == 1:
        (inner,) = found.folders
        if inner.name.lower() in (*_WRAPPERS, found.path.name.lower()):
            found = found.storage.contents(inner)
            passed_over += found.others
    if not found.images:
        entries = [*found.folders, *(other.path for other in found.others)]
        raise UserError(
            f'The folder {found.path} has no images{_only(entries)}: {_EXPECTED}, with files that '
            f'end in {suffixes()}; put images directly into it or remove it.'
        )
    passed_over += [_not_read('nested folders', folder, found.storage) for folder in found.folders]
    return found.images


def _check_class(folder: Path) -> None:
    """TFDS stores the name of one class in a line, without spaces around it."""
    if folder.name != folder.name.strip() or len(folder.name.splitlines()) > 1:
        raise UserError(
            f'The folder {folder} cannot give its name {folder.name!r} to a class, because of a '
            'line break or of a space at one end: rename it.'
        )


def _check_name(folder: Path) -> None:
    """Class names, and the path of the folder, are stored as UTF-8 with the prepared data."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f'The name of the folder {folder} is not UTF-8: rename it.') from None


def _not_read(kind: str, folder: Path, storage: Storage) -> PassedOver:
    count = len(images_below(folder, storage)[0])
    return PassedOver(kind, folder, f'{count:,} image{"s" * (count != 1)}')


def _only(paths: list[Path]) -> str:
    return f', only {_some(paths)}' if paths else ''


def _some(paths: Iterable[Path]) -> str:
    names = [printable(path.name) for path in paths]
    return ', '.join(names[:10]) + (f' and {len(names) - 10:,} more' if len(names) > 10 else '')

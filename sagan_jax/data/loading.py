"""Opens the configuration's `dataset` as a random-access source of images and labels."""

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import grain
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sagan_jax.data import (
    cifar10,
    class_folders,
    from_tfds,
    hub_listing,
    image_folder,
    imagenet2012,
    preparing,
    stored,
)
from sagan_jax.data.preparing import quiet
from sagan_jax.data.shapes import Shapes
from sagan_jax.errors import UserError
from sagan_jax.image_scan import describe
from sagan_jax.images import aspect_ratio, open_image, square
from sagan_jax.system import failures
from sagan_jax.system.untrusted import reason

_MEASURED = 500  # files whose width and height are read


class Example(TypedDict):
    """A labelled image."""

    image: np.ndarray  # uint8 [S, S, 3]
    label: int | np.integer


@dataclasses.dataclass(frozen=True)
class Source:
    """A split of a data set, prepared and open for random access."""

    examples: Sequence[Example]
    class_names: tuple[str, ...]  # labels are indices into these
    image_size: int  # S
    name: str  # with builder configuration and version: different images have different names
    split: str
    folder: Path  # of the prepared data
    content: stored.Content
    passed_over: tuple[str, ...] = ()  # what the scan of a folder did not use, in lines
    aspects: tuple[float, ...] = ()  # width / height of some files of a folder
    channels: int = 3  # 1 if all images are made grey: the three values of each pixel are equal

    def __len__(self) -> int:
        return len(self.examples)


_MakeBuilder = Callable[..., tfds.core.DatasetBuilder]


class _Origin(NamedTuple):
    """What a data set is prepared from, and how."""

    title: str  # what messages call it
    make_builder: _MakeBuilder
    prepare: Callable[[_MakeBuilder], tfds.core.DatasetBuilder] = preparing.prepared
    listing: class_folders.Listing | None = None  # of a folder of images


def load(dataset: ml_collections.ConfigDict, split: str = 'train') -> Source:
    """Opens a split of a data set, and prepares the data set on first use.

    Args:
      dataset: the configuration's `dataset`. Reads `name`, `data_dir`, `source_dir`, `image_size`,
        `channels` and `num_classes`. `name` is 'shapes', 'image_folder' (the folder or archive
        `source_dir`), 'cifar10' (the archive `source_dir`, or a download), 'imagenet2012' (the
        folder `source_dir` of its tars), 'hf:OWNER/NAME' of the Hugging Face hub (with `revision`,
        `image_key` and `label_key`), or a TFDS data set with images under 'image' and classes under
        'label'. Labels may be missing if `num_classes` is 0, 1 or None; then all are 0. With None
        any number is accepted.
      split: 'train' or 'test'. If there is no 'test', its 'validation' is opened.

    Raises:
      UserError: if there is no such data set, folder or split; if its number of classes is not
        `num_classes`; or if it cannot be prepared, because an image is unreadable, a folder cannot
        be written, a download fails, or TensorFlow is missing.
    """
    title, make_builder, prepare, listing = _origin(dataset)
    folder = _folder(dataset)
    with quiet():
        with _reading(folder):
            builder = make_builder()
            class_names = _class_names(builder)
        # Report mistakes before preparing anything, which may take hours.
        found, wanted = len(class_names or (dataset.name,)), dataset.num_classes
        if wanted is not None and found != max(1, wanted):
            raise UserError(
                f'{title} has {found} classes but dataset.num_classes is {wanted}: '
                f'set --config.dataset.num_classes={found}.'
            )
        _check_images(builder, title)
        if not builder.is_prepared():
            if os.path.exists(builder.data_dir):
                raise UserError(
                    f'The folder {builder.data_dir} is not a prepared data set: remove it or '
                    'rename it.'
                )
            builder = prepare(make_builder)
        split = _find_split(builder, split)
        with _reading(folder):
            examples = _open(builder, split)
    labelled = class_names is not None
    with _reading(folder):
        content = stored.content(builder, split, examples, labelled)
    return Source(
        examples=_converted(builder, examples, dataset, labelled),
        class_names=class_names or (dataset.name,),
        image_size=dataset.image_size,
        name=_full_name(dataset, builder, content),
        split=split,
        folder=Path(builder.data_dir),
        content=content,
        passed_over=tuple(describe(listing.passed_over, listing.folder)) if listing else (),
        aspects=_aspects(listing, split) if listing else (),
        channels=dataset.channels,
    )


def _full_name(
    dataset: ml_collections.ConfigDict, builder: tfds.core.DatasetBuilder, content: stored.Content
) -> str:
    if isinstance(builder, image_folder.FolderOfImages):
        name = image_folder.full_name(builder, content.sha256)
    elif dataset.name.startswith(hub_listing.PREFIX):
        name = builder.info.description  # with the revision
    else:
        name = builder.info.full_name
    return f'{name}, grey' if dataset.channels == 1 else name


def count_classes(dataset: ml_collections.ConfigDict) -> int:
    """The number of classes of a data set. Prepares nothing. Raises what `load` raises."""
    origin = _origin(dataset)
    with quiet(), _reading(_folder(dataset)):
        return len(_class_names(origin.make_builder()) or (dataset.name,))


def count_images(dataset: ml_collections.ConfigDict) -> int:
    """The number of training images of a data set. Raises what `load` raises.

    Those of a folder are counted before they are prepared, those of other data sets afterwards.
    """
    listing = _origin(dataset).listing
    return len(listing.splits['train']) if listing else len(load(dataset))


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Reports prepared data that are damaged in one sentence; other failures pass."""
    try:
        yield
    except Exception as error:  # what TFDS raises depends on the damage
        if failures.explain(error):
            raise
        raise UserError(
            f'The prepared data in {folder} cannot be read ({reason(error)}): remove the folder, '
            'and they are prepared again.'
        ) from error


def _folder(dataset: ml_collections.ConfigDict) -> Path:
    """Where the data set is prepared."""
    name = re.split('[:/]', dataset.name)[0]
    return Path(dataset.data_dir or tfds.core.constants.DATA_DIR).expanduser() / name


def _origin(dataset: ml_collections.ConfigDict) -> _Origin:
    name = dataset.name
    data_dir = dataset.data_dir and os.path.expanduser(dataset.data_dir)  # TFDS does not
    title = f'The data set {name}'
    create: _MakeBuilder
    if name == 'shapes':
        create = functools.partial(Shapes, data_dir=data_dir, file_format='array_record')
        return _Origin(title, create)
    if name == 'cifar10':
        downloads = preparing.downloads(data_dir)
        create = functools.partial(
            cifar10.builder, dataset.source_dir, downloads, data_dir=data_dir
        )
        return _Origin(title, create)
    if name == 'imagenet2012':
        create = functools.partial(
            imagenet2012.builder, dataset.source_dir, dataset.image_size, data_dir=data_dir
        )
        return _Origin(title, create)
    if name.startswith(hub_listing.PREFIX):
        from sagan_jax.data import hub_images  # loads pyarrow, which nothing else needs

        create = hub_images.maker(
            name,
            dataset.revision,
            dataset.image_key,
            dataset.label_key,
            dataset.image_size,
            data_dir,
        )
        return _Origin(title, create)
    if name != 'image_folder':
        return _Origin(title, functools.partial(from_tfds.find, name, data_dir), from_tfds.prepared)
    listing = class_folders.scan(dataset.source_dir)
    title = f'The {"archive" if listing.archive else "folder"} {listing.folder}'
    if listing.flat and (dataset.num_classes or 0) > 1:
        raise UserError(
            f'{title} has images but no class folders: put the images of each class into a '
            'separate folder, or leave out --config.dataset.num_classes to train without classes.'
        )
    create = functools.partial(image_folder.builder, listing, dataset.image_size, data_dir=data_dir)
    return _Origin(title, create, listing=listing)


def _aspects(listing: class_folders.Listing, split: str) -> tuple[float, ...]:
    """Width / height of evenly spaced files, without decoding them. Leaves out unreadable ones."""
    if listing.archive and listing.archive.sequential:
        return ()  # each would be read from the beginning
    images = listing.splits.get(split, [])
    indices = np.unique(np.linspace(0, len(images) - 1, min(_MEASURED, len(images))).astype(int))
    found = (aspect_ratio(images[index][0], listing.storage.open) for index in indices)
    return tuple(ratio for ratio in found if ratio)


def _class_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...] | None:
    """The names of the classes, or None if the examples have no class labels."""
    label = dict(builder.info.features).get('label')
    if isinstance(label, tfds.features.ClassLabel) and label.num_classes is not None:
        return tuple(label.names)
    return None


def _check_images(builder: tfds.core.DatasetBuilder, title: str) -> None:
    image: Any = dict(builder.info.features).get('image')
    is_image = isinstance(image, tfds.features.Image) or (
        isinstance(image, tfds.features.Tensor) and image.shape[2:] == (3,)
    )
    if not is_image or image.np_dtype != np.uint8:
        raise UserError(
            f'{title} has no images under the key "image", only '
            f'{", ".join(builder.info.features)}: choose another with --config.dataset.name=NAME.'
        )


def _find_split(builder: tfds.core.DatasetBuilder, split: str) -> str:
    candidates = ('test', 'validation') if split == 'test' else (split,)
    for name in candidates:
        if name in builder.info.splits:
            return name
    raise UserError(
        f'The data set {builder.name} has no split {" or ".join(candidates)}, only '
        f'{", ".join(builder.info.splits)}: choose another data set or split.'
    )


def _open(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
    """The examples of a split as they are stored."""
    try:
        return builder.as_data_source(
            split,
            # TFDS would return grey, CMYK and palette images unconverted.
            decoders={'image': tfds.decode.SkipDecoding()} if _is_encoded(builder) else None,
        )
    except NotImplementedError as error:
        raise UserError(
            f'{builder.data_dir} is prepared as {builder.info.file_format.value}, which has no '
            'random access: remove it, or choose another folder with '
            '--config.dataset.data_dir=FOLDER, and it is prepared as array_record.'
        ) from error


def _is_encoded(builder: tfds.core.DatasetBuilder) -> bool:
    return isinstance(builder.info.features['image'], tfds.features.Image)


def _converted(
    builder: tfds.core.DatasetBuilder,
    examples: Sequence[Any],
    dataset: ml_collections.ConfigDict,
    labelled: bool,
) -> Sequence[Example]:
    size, is_grey = dataset.image_size, dataset.channels == 1
    as_wanted = builder.info.features['image'].shape[:2] == (size, size) and not is_grey
    if labelled and not _is_encoded(builder) and as_wanted:
        return examples
    return grain.MapDataset.source(examples).map(
        functools.partial(_convert, image_size=size, is_grey=is_grey, labelled=labelled)
    )


def _convert(example: dict[str, Any], image_size: int, is_grey: bool, labelled: bool) -> Example:
    stored = example['image']
    encoded = isinstance(stored, bytes)
    image = open_image(io.BytesIO(stored)) if encoded else Image.fromarray(stored)
    label = example['label'] if labelled else 0
    if label < 0:
        raise UserError('The data set has images without a label: choose another split.')
    image = square(image, image_size)
    if is_grey:
        image = image.convert('L').convert('RGB')
    return {'image': np.asarray(image), 'label': label}

"""Images and labels in parquet files as the library `datasets` writes them."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sagan_jax.errors import UserError, printable
from sagan_jax.system import failures
from sagan_jax.system.untrusted import reason

_IMAGE_NAMES = ('image', 'img')
_LABEL_NAMES = ('label', 'labels', 'fine_label')


class Columns(NamedTuple):
    """Where images and labels are."""

    image: str
    label: str | None  # None if there are no classes
    class_names: tuple[str, ...]  # of the labels


def columns(path: Path, title: str, image_key: str | None, label_key: str | None) -> Columns:
    """Finds the columns of a data set by their types and the usual names.

    Args:
      path: one of its files.
      title: what messages call it.
      image_key: the column of images; None to find it.
      label_key: the column of labels; None to find it, '' for no classes.

    Raises:
      UserError: if the file is damaged, if a column that is named does not exist or has another
        type, or if there are several that it could be.
    """
    with _reading(path) as file:
        schema = file.schema_arrow
        features = _features(schema)
    images = [
        field.name
        for field in schema
        if features.get(field.name, {}).get('_type') == 'Image' or _holds_files(field.type)
    ]
    classes = {
        name: _class_names(feature)
        for name, feature in features.items()
        if feature.get('_type') == 'ClassLabel' and name in schema.names
    }
    image = _choose(title, 'images', 'image_key', image_key or None, images, _IMAGE_NAMES)
    if image is None:
        raise UserError(
            f'{title} has no column of images, only {_listed(schema.names)}: choose another with '
            '--config.dataset.name.'
        )
    label = _choose(title, 'classes', 'label_key', label_key, list(classes), _LABEL_NAMES)
    names = classes[label] if label else ()
    if label and len({*names}) != max(1, len(names)):
        raise UserError(
            f'{title} has no name or the same one for several classes of {printable(label)}: leave '
            'out the classes with --config.dataset.label_key=.'
        )
    return Columns(image, label, names)


def count(path: Path) -> int:
    """The number of images in a file."""
    with _reading(path) as file:
        return file.metadata.num_rows


def rows(path: Path, found: Columns) -> Iterator[tuple[bytes, int]]:
    """Iterates over the image files and the labels; b'' and -1 where there is none."""
    wanted = [found.image] + ([found.label] if found.label else [])
    with _reading(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=wanted):
            images = batch.column(found.image).to_pylist()
            labels = batch.column(found.label).to_pylist() if found.label else [0] * len(images)
            for image, label in zip(images, labels, strict=True):
                content = image.get('bytes') if isinstance(image, dict) else image
                yield content or b'', -1 if label is None else label


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        if failures.is_passing(error):
            raise
        raise UserError(
            f'The file {path} cannot be read ({reason(error)}): remove it, and it is downloaded '
            'again.'
        ) from error


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` writes beside the types: the kind of each column, and names of classes."""
    try:
        features = json.loads((schema.metadata or {})[b'huggingface'])['info']['features']
        return {name: each for name, each in features.items() if isinstance(each, dict)}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}  # written by another program


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """In lines of their own, as TFDS stores them."""
    names = feature.get('names')
    return tuple(' '.join(str(name).split()) for name in names) if isinstance(names, list) else ()


def _holds_files(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and 'bytes' in [field.name for field in kind]


def _choose(
    title: str,
    what: str,
    key: str,
    given: str | None,
    candidates: Sequence[str],
    usual: Sequence[str],
) -> str | None:
    """The column that is named, has a usual name, or is the only candidate; None without any."""
    if given is not None:
        if given and given not in candidates:
            raise UserError(
                f'{title} has no column {printable(given)} of {what}, only {_listed(candidates)}: '
                f'set --config.dataset.{key} to another, or leave it out.'
            )
        return given or None
    for name in usual:
        if name in candidates:
            return name
    if len(candidates) > 1:
        raise UserError(
            f'{title} has several columns of {what}, {_listed(candidates)}: choose one with '
            f'--config.dataset.{key}=NAME.'
        )
    return candidates[0] if candidates else None


def _listed(names: Sequence[str]) -> str:
    return ', '.join(map(printable, names)) or 'none'

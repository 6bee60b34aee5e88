"""Images of the Hugging Face hub, prepared once as a folder of images is."""

import dataclasses
import functools
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from sagan_jax.data import hub_listing, parquet, preparing
from sagan_jax.data.preparing import Shard
from sagan_jax.errors import UserError
from sagan_jax.images import UnreadableImage, decode_square, unreadable


@dataclasses.dataclass
class HubConfig(tfds.core.BuilderConfig):
    """What the data are prepared from. Prepared data are found again by the name."""

    listing: hub_listing.Listing | None = None
    columns: parquet.Columns | None = None
    image_size: int = 0
    downloads: Path = Path()


class HubImages(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS builder. Its description names the revision and the columns."""

    name = 'hf'
    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # TFDS downloads nothing

    def _info(self) -> tfds.core.DatasetInfo:
        listing, columns = self.builder_config.listing, self.builder_config.columns
        repository = listing.repository
        config = f'/{listing.config}' if listing.config else ''
        keys = ', '.join(key for key in (columns.image, columns.label) if key)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'hf:{repository.name}{config}@{repository.commit} ({keys})',
            features=preparing.features(
                self.builder_config.image_size, columns.class_names or (repository.name,)
            ),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        del dl_manager
        config = self.builder_config
        paths = {
            split: [hub_listing.fetch(config.listing, file, config.downloads) for file in files]
            for split, files in config.listing.splits.items()
        }
        size = config.image_size
        found = {}
        for split, files in paths.items():
            count = sum(map(parquet.count, files))
            examples = _examples(split, files, config.columns, count, size, Path(self.data_dir))
            found[split] = preparing.shards(examples, count, size * size * 3)
        return found


def maker(
    name: str,
    revision: str | None,
    image_key: str | None,
    label_key: str | None,
    image_size: int,
    data_dir: str | None,
) -> Callable[..., tfds.core.DatasetBuilder]:
    """Returns what creates the builder of one data set at one size. Prepares nothing.

    Prepared data are found without a network. If there are none, the builder asks the hub for the
    files, once, and downloads the first one, which has the names of the classes.

    Args:
      name: as for `hub_listing.parse`, like the others of the configuration's `dataset`.
      revision: as for `hub_listing.find`. Without one, data that are prepared stay as they are.
      image_key: as for `parquet.columns`.
      label_key: as for `parquet.columns`.
      image_size: of the squares that are stored.
      data_dir: the folder of prepared data, which the builder's own argument replaces.
    """
    repository, _ = hub_listing.parse(name)
    downloads = preparing.downloads(data_dir)
    key = hashlib.sha256(repr((name, revision, image_key, label_key)).encode()).hexdigest()[:16]
    words = re.sub(r'[^A-Za-z0-9]+', '_', repository)
    config_name = f'{words}_{image_size}px_{key}'

    @functools.cache
    def found() -> tuple[hub_listing.Listing, parquet.Columns]:
        listing = hub_listing.find(name, revision)
        first = hub_listing.fetch(listing, listing.splits['train'][0], downloads)
        return listing, parquet.columns(first, f'The data set {name}', image_key, label_key)

    def create(data_dir: str | None = data_dir) -> tfds.core.DatasetBuilder:
        root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        folder = root / HubImages.name / config_name / str(HubImages.VERSION)
        if folder.exists():
            return tfds.builder_from_directory(str(folder))
        listing, columns = found()
        config = HubConfig(
            name=config_name,
            listing=listing,
            columns=columns,
            image_size=image_size,
            downloads=downloads,
        )
        return HubImages(config=config, data_dir=data_dir, file_format='array_record')

    return create


def _examples(
    split: str,
    paths: Sequence[Path],
    columns: parquet.Columns,
    count: int,
    size: int,
    folder: Path,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Raises UserError about all images of the split that cannot be used."""
    # Rows of a parquet file can only be read in order. Their images wait on disk for theirs.
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name: nothing is left
        labels = np.empty(count, int)
        decoded = preparing.in_threads(functools.partial(_decode, size=size), _rows(paths, columns))
        bar = tqdm(decoded, desc=f'Preparing {split}', total=count, unit=' images')
        failed = []
        for index, (image, label) in enumerate(bar):
            if isinstance(image, UnreadableImage):
                failed.append(image)
            else:
                # Written and not mapped: a full disk ends a process that writes to mapped memory.
                file.write(image.tobytes())
                labels[index] = label
        if failed:
            raise unreadable(failed)
        wrong = np.flatnonzero((labels < 0) | (labels >= max(1, len(columns.class_names))))
        if len(wrong):
            raise UserError(
                f'{len(wrong):,} of {count:,} images of the split {split} have no class, the first '
                f'in row {wrong[0]}: choose another data set, or leave out the classes with '
                '--config.dataset.label_key=.'
            )
        file.flush()
        images = np.memmap(file, np.uint8, 'r', shape=(count, size, size, 3))
        for index in preparing.tfds_order(split, count):
            yield index, {'image': np.asarray(images[index]), 'label': int(labels[index])}


def _rows(paths: Sequence[Path], columns: parquet.Columns) -> Iterator[tuple[str, bytes, int]]:
    """The name, the file and the label of each image."""
    for path in paths:
        for row, (content, label) in enumerate(parquet.rows(path, columns)):
            yield f'in row {row} of {path}', content, label


def _decode(row: tuple[str, bytes, int], size: int) -> tuple[np.ndarray | UnreadableImage, int]:
    name, content, label = row
    try:
        return decode_square(content, name, size), label
    except UnreadableImage as error:
        return error, label

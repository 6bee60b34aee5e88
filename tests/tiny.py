"""A configuration that compiles and runs in seconds, and made-up input for it."""

from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image

from configs import common


def config(**overrides) -> ml_collections.ConfigDict:
    """Networks of a few thousand parameters at 32×32; overrides by dotted name."""
    tiny = common.get_config()
    tiny.update_from_flattened_dict(
        {
            'num_train_steps': 4,
            'batch_size': 8,
            'dataset.num_classes': 3,
            'model.architecture': 'pyramid',
            'model.generator_width': 4,
            'model.discriminator_width': 4,
            'model.z_dim': 8,
            'log_every': 1,
            'sample_every': 4,
            'checkpoint_every': 2,
            'evaluation.features': 'in_domain',
            'evaluation.num_samples': 50,
            'evaluation.training_samples': 40,
            'evaluation.pair_samples': 30,
            'evaluation.splits': 2,
        }
    )
    tiny.update_from_flattened_dict({k.replace('__', '.'): v for k, v in overrides.items()})
    return tiny


def batch(config: ml_collections.ConfigDict, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels for one call of the train step."""
    count = config.steps_per_call * config.discriminator_steps * config.batch_size
    size = config.dataset.image_size
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, rng.integers(0, config.dataset.num_classes, count).astype(np.int32)


def picture_folder(folder: Path, classes: int = 3, count: int = 12) -> Path:
    """A folder of class folders of 32×32 PNG files, each class of its own brightness."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f'class{label}').mkdir(parents=True)
        for index in range(count):
            low = 80 * label
            image = rng.integers(low, low + 60, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f'class{label}' / f'{index}.png')
    return folder


def folder_config(folder: Path, **overrides) -> ml_collections.ConfigDict:
    """`config` on a folder of pictures, prepared beside it."""
    return config(
        dataset__name='image_folder',
        dataset__source_dir=str(folder),
        dataset__data_dir=str(folder.parent / 'prepared'),
        **overrides,
    )

"""A configuration that compiles and runs in seconds, and made-up input for it."""

from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image, ImageDraw

from sagan_jax import data
from sagan_jax.configuration import defaults
from sagan_jax.evaluation import real_statistics
from sagan_jax.metrics import in_domain
from sagan_jax.run import checkpoints, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import create_state

# Overrides of `config` for networks of one doubling, see `conftest.small_networks`.
SMALL = {
    'dataset__image_size': 8,
    'model__generator_attention': (8,),
    'model__discriminator_attention': (4,),
}

# A score, as `evaluation/7.json` has it.
ROW = {
    'name': 'fid10k_train', 'value': 12.3456, 'step': 7, 'num_fake': 10_000, 'num_real': 20_000,
    'data': 'made/1.0.0', 'split': 'train', 'features': 'inception-2015-12-05',
    'resize': 'bilinear', 'rounding': 'uint8', 'labels': 'uniform over 3', 'seed': 0,
}  # fmt: skip


def config(**overrides) -> ml_collections.ConfigDict:
    """Networks of a few thousand parameters at 32×32; overrides by dotted name."""
    tiny = defaults.get_config()
    tiny.update_from_flattened_dict(
        {
            'num_train_steps': 4,
            'batch_size': 8,
            'dataset.num_classes': 3,
            'model.architecture': 'pyramid',
            'model.generator_width': 4,
            'model.discriminator_width': 4,
            'model.z_dim': 8,
            'model.generator_attention': (16,),
            'model.discriminator_attention': (16,),
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
    return images, rng.integers(0, max(1, config.dataset.num_classes), count).astype(np.int32)


def picture_folder(folder: Path, classes: int = 3, count: int = 12) -> Path:
    """A folder of class folders of 32×32 PNG files, each class of its own brightness."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f'class{label}').mkdir(parents=True)
        for index in range(count):
            low = 80 * label % 196
            image = rng.integers(low, low + 60, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f'class{label}' / f'{index}.png')
    return folder


def photograph(rng: np.random.Generator, width: int = 80, height: int = 64) -> Image.Image:
    """A made-up photograph: smooth colours, an object with a sharp edge, and grain."""
    colours = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    left, top = rng.integers(0, width // 2), rng.integers(0, height // 2)
    box = (left, top, left + width // 3, top + height // 3)
    ImageDraw.Draw(image).ellipse(box, tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, 4, (height, width, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def photographs(folder: Path, count: int, classes: Sequence[str] = ('',), **options) -> Path:
    """A folder with `count` photographs as JPEG files in each of some class folders."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            photograph(rng, **options).save(folder / name / f'{index}.jpg')
    return folder


def scored_folder(folder: Path) -> Path:
    """`picture_folder` as `folder/source`, prepared and with a classifier of ten steps."""
    config = folder_config(picture_folder(folder / 'source'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_domain, 'STEPS', 10)
        real_statistics.load_networks(config, data.load(config.dataset, 'train'))
    return folder


def folder_config(folder: Path, **overrides) -> ml_collections.ConfigDict:
    """`config` on a folder of pictures, prepared beside it."""
    return config(
        dataset__name='image_folder',
        dataset__source_dir=str(folder),
        dataset__data_dir=str(folder.parent / 'prepared'),
        **overrides,
    )


def arguments(config: ml_collections.ConfigDict, workdir: Path) -> list[str]:
    """The command line that makes `config`; which processes there are is for others to say."""
    given = []
    for name, value in config.items():
        keys = value.items() if isinstance(value, ml_collections.ConfigDict) else [('', value)]
        for key, item in keys:
            if item is not None and name != 'distributed':
                given.append(f'--config.{name}{"." if key else ""}{key}={item}')
    return ['--config', 'sagan_jax/configuration/defaults.py', '--workdir', str(workdir), *given]


def trained_run(workdir: Path) -> None:
    """A workdir as training leaves it, with one checkpoint, whose every number is made up."""
    made = config(ema__decay=0.5)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: (
            leaf + rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32)
            if np.issubdtype(leaf.dtype, np.floating)
            else np.asarray(leaf)
        ),
        create_state(made),
    )
    RunFolder(workdir).write_record(
        provenance.record(made) | {'data': {'class_names': ['class0', 'class1', 'class2']}}
    )
    manager = checkpoints.open_manager(workdir / 'checkpoints', keep=1)
    checkpoints.save(manager, 7, state, made)
    manager.close()

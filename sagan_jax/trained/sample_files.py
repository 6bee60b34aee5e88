"""Writes images of a trained model to files: `--mode sample`."""

import collections
import json
import math
import sys
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sagan_jax import sampling
from sagan_jax.errors import UserError
from sagan_jax.images import image_grid, save_png
from sagan_jax.system.failures import writing
from sagan_jax.system.files import atomic_path, locked, remove_partial
from sagan_jax.system.paths import folder_names, refuse_file
from sagan_jax.system.records import differences
from sagan_jax.system.signals import collected
from sagan_jax.system.untrusted import read_json
from sagan_jax.trained.model import Model

# What can be drawn, with the default number of images, or of rows for the interpolations.
KINDS = {
    'samples': 100,
    'noise_interpolation': 8,
    'class_interpolation': 8,
    'nearest': 8,
    'ranking': 100,
}
RECORD = 'samples.json'  # in a folder of samples: their checkpoint and settings

_MAX_IN_A_GRID = 2500
_NEIGHBOURS = 6


def write_samples(
    model: Model,
    output: Path,
    kind: str = 'samples',
    classes: Sequence[str] = (),
    n: int | None = None,
    seed: int = 0,
    truncation: float | None = None,
) -> None:
    """Draws images of a model and writes them to files.

    The kind 'samples' draws images 0 … n - 1 of the seed. It writes a grid if `output` ends in
    .png, and arrays 'images', 'labels' and 'class_names' if it ends in .npz. Otherwise it writes a
    folder of PNG files, with a folder for each class. Into an existing folder of the same samples,
    it writes only the files that are missing.

    The other kinds write one PNG file. 'noise_interpolation' and 'class_interpolation' show one
    interpolation per row, 'ranking' shows samples in descending order of the discriminator's
    logits, and 'nearest' shows samples beside the training images nearest to them.

    Args:
      model: see `sagan_jax.load`.
      output: a file or a folder.
      kind: one of `KINDS`.
      classes: names or indices; all classes by default.
      n: the number of images or rows; see `KINDS` for the default.
      seed, truncation: see `Model.sample`.

    Raises:
      UserError: if there is no such kind, `Model.sample` refuses an argument, the folder holds
        something else, or a file cannot be written.
    """
    if kind not in KINDS:
        raise UserError(f'Cannot draw {kind!r}: choose {", ".join(KINDS)}.')
    n = KINDS[kind] if n is None else n
    suffix = output.suffix.lower()
    is_png = suffix == '.png'
    if kind != 'samples' and not is_png:
        raise UserError(
            f'{kind} writes one image: give an --output that ends in .png, not {output}.'
        )
    if not is_png and suffix != '.npz':
        refuse_file(output)
    write = _write_arrays if suffix == '.npz' else _write_folder
    with writing(output, 'another --output'):
        if is_png:
            _write_png(model, output, kind, classes, n, seed, truncation)
        else:
            write(model, output, classes, n, seed, truncation)
    print(f'written        {output}')


# ---- One image. --------------------------------------------------------------------------------


def _write_png(
    model: Model,
    path: Path,
    kind: str,
    classes: Sequence[str],
    n: int,
    seed: int,
    truncation: float | None,
) -> None:
    if n > _MAX_IN_A_GRID:
        raise UserError(
            f'{n:,} images are too many for one PNG file, at most {_MAX_IN_A_GRID:,}: give an '
            '--output that ends in .npz, or a folder.'
        )
    if kind.endswith('interpolation'):
        in_noise = kind == 'noise_interpolation'
        interpolate = model.interpolate_noise if in_noise else model.interpolate_classes
        rows = interpolate(classes, n, seed, truncation)
        grid = image_grid(np.concatenate(rows), columns=rows.shape[1])
        return save_png(path, grid)

    images, labels = model.sample(classes, n, seed, truncation), model.labels(classes, n)
    if kind == 'nearest':
        return _write_nearest(model, path, images)
    columns = math.isqrt(n - 1) + 1
    num_classes = len(classes or model.class_names)
    if kind == 'ranking':
        logits = model.discriminate(images, labels)
        images = images[np.argsort(-logits)]
        print(f'ranking        logits from {logits.max():+.3g} to {logits.min():+.3g}')
    elif 1 < num_classes < n and n % num_classes == 0:  # one class per row
        images, columns = sampling.in_rows(images, num_classes), n // num_classes
    return save_png(path, image_grid(images, columns))


def _write_nearest(model: Model, path: Path, images: np.ndarray) -> None:
    # Here, because the other kinds need neither training data nor Matplotlib.
    from sagan_jax import figures
    from sagan_jax.evaluation import training_data
    from sagan_jax.evaluation.neighbours import nearest_images

    source = training_data.load(model.config, model.run)
    found = nearest_images(model.config, source, images, _NEIGHBOURS)
    figure = figures.neighbours_figure(images, found.images, found.distances)
    figures.save_figure(path, figure)
    print(
        'nearest        training image, median distance: '
        f'{np.median(found.distances[:, 0]):.3g} from a sample, '
        f'{np.median(found.among_images):.3g} from another training image'
    )


# ---- Any number of images, with a few batches in memory. ----------------------------------------


def _write_arrays(
    model: Model, path: Path, classes: Sequence[str], n: int, seed: int, truncation: float | None
) -> None:
    labels, size = model.labels(classes, n), model.config.dataset.image_size
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (n, size, size, 3)}
    stream = model.stream(np.arange(n), labels, seed, truncation)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        with archive.open('images.npy', 'w', force_zip64=True) as file, _progress(n) as bar:
            np.lib.format.write_array_header_1_0(file, header)
            for images in stream:
                file.write(images.tobytes())
                bar.update(len(images))
        for name, array in (('labels', labels), ('class_names', np.array(model.class_names))):
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, array)


def _write_folder(
    model: Model, folder: Path, classes: Sequence[str], n: int, seed: int, truncation: float | None
) -> None:
    labels = model.labels(classes, n)
    names = [''] * len(model.class_names)
    if model.config.model.conditioning != 'none':
        names = folder_names(model.class_names, reserved=[RECORD])
    record = {
        'step': model.step,
        'sha256': model.sha256[:16],
        'classes': [names[label] for label in sampling.class_indices(classes, model.class_names)],
        'seed': seed,
        'truncation': truncation,
        'num_images': n,
    }

    def path(index):
        return folder / names[labels[index]] / f'{index:06d}.png'

    with locked(folder / '.lock', lambda: _refuse_busy(folder)):
        _check_record(folder, record)
        remove_partial(folder, *(folder / name for name in names))
        missing = np.array([index for index in range(n) if not path(index).exists()], np.int32)
        print(f'images         {n - len(missing):,} of {n:,} exist already')
        if not len(missing):
            return
        stream = model.stream(missing, labels[missing], seed, truncation)
        with atomic_path(folder / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + '\n')

        since, done = time.monotonic(), 0
        under_way: collections.deque[list[Future]] = collections.deque()  # batches being written
        with ThreadPoolExecutor() as pool, collected() as signals, _progress(len(missing)) as bar:
            for images in stream:
                indices = missing[done : done + len(images)]
                under_way.append(
                    [
                        pool.submit(save_png, path(index), image)
                        for index, image in zip(indices, images, strict=True)
                    ]
                )
                done += len(images)
                bar.update(len(images))
                is_last = bool(signals) or done == len(missing)
                while len(under_way) > (0 if is_last else 2):
                    for written in under_way.popleft():
                        written.result()
                if is_last:
                    break
    seconds = time.monotonic() - since
    print(f'               {done:,} in {seconds:.1f} s, {done / seconds:,.0f} images/s')
    if done < len(missing):
        print(f'interrupted    after {done:,} images: repeat the command to continue')
        sys.exit(128 + signals[0])


def _progress(total: int) -> tqdm:
    return tqdm(desc='images', total=total, unit='img')


def _refuse_busy(folder: Path) -> None:
    raise UserError(
        f'Another process is writing to {folder}: wait for it, or choose another --output.'
    )


def _check_record(folder: Path, record: dict[str, Any]) -> None:
    """Refuses a folder unless it is empty or holds images of the same checkpoint and settings."""
    path, other = folder / RECORD, []
    if path.exists():
        try:
            written = read_json(path)
            other = [
                f'{key} {found!s:.60}, not {wanted!s:.60}'
                for key, found, wanted in differences(written, record)
                if not (key == 'num_images' and found < wanted)  # images may be added
            ]
        except (OSError, ValueError, TypeError, AttributeError):
            other = [f'{RECORD} cannot be read']
    elif any(not entry.name.startswith('.') for entry in folder.iterdir()):
        other = [f'there is no {RECORD}']
    if other:
        raise UserError(
            f'The folder {folder} holds something else ({"; ".join(other)}): choose another '
            '--output, or remove it.'
        )

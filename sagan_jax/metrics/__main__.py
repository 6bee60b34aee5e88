"""Scores a folder of generated images: `python -m sagan_jax.metrics REAL FAKE`."""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from sagan_jax.errors import UserError
from sagan_jax.images import read
from sagan_jax.metrics import folders, inception, scores
from sagan_jax.metrics.comparison import DENSITY_NEIGHBOURS, compare
from sagan_jax.metrics.features import Collected, collect
from sagan_jax.system import compilation, numerics
from sagan_jax.system.failures import writing
from sagan_jax.system.files import atomic_path
from sagan_jax.system.paths import check_path
from sagan_jax.system.records import versions
from sagan_jax.system.streaming import on_devices, rows_at_a_time

MAX_PAIRED = 10_000  # images of each folder, at most, for scores over pairs of samples


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Raises UserError for a user's mistake."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f'Warning: {message}.', file=sys.stderr)
        numerics.check()
        rows = _score(options)
    for row in rows:
        print(json.dumps(row))
    if options.json:
        with (
            writing(options.json, 'another file with --json'),
            atomic_path(options.json) as temporary,
        ):
            temporary.write_text(json.dumps(rows, indent=2) + '\n')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m sagan_jax.metrics',
        description='Scores a folder of generated images against a folder of real ones with the '
        'Inception network of 2015-12-05: FID, Inception Score, KID, precision and recall, density '
        f'and coverage, the last five over at most {MAX_PAIRED} images of each folder. Reads '
        'subfolders too. All images must have the same size. Prints one line of JSON per score.',
    )
    parser.add_argument('real', metavar='REAL', help='folder of real images')
    parser.add_argument('fake', metavar='FAKE', help='folder of generated images')
    parser.add_argument(
        '--weights',
        metavar='PATH',
        help='inception-2015-12-05.tgz or the classify_image_graph_def.pb inside it; default: the '
        'file that the environment variable SAGAN_JAX_INCEPTION names, or else a cached download',
    )
    parser.add_argument(
        '--batch_size',
        type=_at_least(1),
        default=64,
        help='images at a time on each device, default: %(default)s',
    )
    parser.add_argument(
        '--splits',
        type=_at_least(1),
        default=10,
        help='splits of the Inception Score, default: %(default)s',
    )
    parser.add_argument(
        '--max_images', type=_at_least(1), help='use at most this many random images of each folder'
    )
    parser.add_argument(
        '--seed',
        type=_at_least(0),
        default=0,
        help='seed of the order of the images, default: %(default)s',
    )
    parser.add_argument('--json', metavar='FILE', help='write the scores to this file too')
    return parser


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f'{text} is not an integer of at least {minimum}')
        return int(text)

    return number


def _score(options: argparse.Namespace) -> list[dict[str, Any]]:
    # ---- paths and images, checked before anything that takes long ----
    for name, path in (
        ('REAL', options.real),
        ('FAKE', options.fake),
        ('--weights', options.weights),
        ('--json', options.json),
    ):
        check_path(path or '', name)
    compared = {'real': options.real, 'fake': options.fake}
    paths = {}
    for side, folder in compared.items():
        found = folders.find(folder, options.seed)
        paths[side] = found.paths[: options.max_images]
        for line in found.passed_over:
            print(f'{side}: {line}', file=sys.stderr)
    minimum = max(options.splits, DENSITY_NEIGHBOURS + 1)
    for side, folder in compared.items():
        if len(paths[side]) < minimum:
            raise UserError(
                f'The folder {folder} has {len(paths[side])} images to score but the scores need '
                f'at least {minimum} ({options.splits} splits of the Inception Score, '
                f'{DENSITY_NEIGHBOURS} neighbours of each image): add images or lower --splits.'
            )

    # ---- features ----
    with contextlib.redirect_stdout(sys.stderr):  # standard output is JSON
        compilation.use_cache()
    network = inception.network(options.weights)
    longest = max(map(len, paths.values()))  # both folders share one program
    stream = on_devices(network.apply, options.batch_size, total=longest)
    batch_size = rows_at_a_time(options.batch_size, total=longest)
    first = paths['real'][0]

    def gather(side: str) -> Collected:
        count = len(paths[side])
        images = folders.batches(paths[side], batch_size, same_size_as=first)
        features = _with_progress(stream(network.variables, images), side, count)
        return collect(features, network.layer, network.logits, count, options.splits, MAX_PAIRED)

    real, fake = gather('real'), gather('fake')

    # ---- scores, each with its protocol ----
    height, width, _ = read(first).shape
    protocol = {
        **compared,
        'image_size': [height, width],
        'rounding': 'uint8',
        'resize': network.resize,
        'features': network.name,
        'weights_sha256': network.sha256,
        'seed': options.seed,
        'versions': versions(),
    }

    return [
        {
            'name': scores.score_name(score.name, score.num_fake),
            'value': score.value,
            **score.details,
            'num_real': score.num_real,
            'num_fake': score.num_fake,
            **protocol,
        }
        for score in compare(real, fake, options.seed)
    ]


def _with_progress(
    features: Iterable[dict[str, np.ndarray]], side: str, count: int
) -> Iterator[dict[str, np.ndarray]]:
    with tqdm(desc=side, total=count, unit='img') as progress:
        for batch in features:
            yield batch
            progress.update(len(batch['2048']))


if __name__ == '__main__':
    main()

"""Shows whether runs know their images by heart: python -m launch.memorisation RUN --source_dir ALL

ALL is a folder of images of the same kind. Its `train` has those of the run and many more, and its
`test` has others. For each checkpoint, one line of JSON has

  fid, kid     of generated images against all of ALL/train, from in-domain features
  nearest      the share of generated images whose nearest image in ALL/train is one of the run; by
               chance, the share of these in ALL/train
  train, test  how well the discriminator tells the run's images, and those of ALL/test, from
               generated ones: the share of pairs in which its logit of the real image is higher; by
               chance 0.5. If train is far above test, it knows the run's images by heart
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sagan_jax import data
from sagan_jax.errors import UserError
from sagan_jax.evaluation import neighbours, real_statistics, training_data
from sagan_jax.metrics import scores
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import compilation
from sagan_jax.system.paths import check_path
from sagan_jax.trained.model import create_loader

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID
JUDGED = 10_000  # images that the discriminator sees, at most


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Raises UserError for a user's mistake."""
    options = _parser().parse_args(arguments)
    check_path(options.source_dir, '--source_dir')
    for run in options.runs:
        check_path(run, 'RUN')
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # standard output is JSON
        compilation.use_cache()
        for run in options.runs:
            for row in score(RunFolder(Path(run)), options.source_dir, options.num_images):
                print(json.dumps(row), file=output, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m launch.memorisation',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('runs', metavar='RUN', nargs='+', help='the --workdir of a run')
    parser.add_argument('--source_dir', metavar='ALL', required=True, help='folder of all images')
    parser.add_argument(
        '--num_images',
        metavar='N',
        type=int,
        default=10_000,
        help='generated images, default: %(default)s',
    )
    return parser


def score(run: RunFolder, source_dir: str, num_images: int) -> Iterator[dict[str, Any]]:
    """Scores all checkpoints of a run.

    Args:
      run: the run.
      source_dir: the folder of all images, see above.
      num_images: the number of generated images.

    Yields:
      A row for each checkpoint, in the order of the steps.

    Raises:
      UserError: if there is no such run or folder, if its classes are others, or if there are too
        few images.
    """
    if num_images < SUBSET_SIZE:
        raise UserError(
            f'{num_images} generated images are too few for KID: set --num_images={SUBSET_SIZE} or '
            'more.'
        )
    config = run.config()
    trained = training_data.load(config, run)
    config.unlock()
    config.dataset.update(name='image_folder', source_dir=source_dir)  # whatever the run has
    whole, held_out = (data.load(config.dataset, split) for split in ('train', 'test'))
    if whole.class_names != trained.class_names:
        raise UserError(
            f'The classes of {source_dir} are not those of {run.path}: give a folder with the same '
            'class folders.'
        )
    networks = real_statistics.load_networks(config, whole)
    batch_size = config.evaluation.batch_size
    real, _ = real_statistics.load_features(whole, networks, batch_size)
    known, _ = real_statistics.load_features(trained, networks, batch_size)
    judged = {'train': _some(trained), 'test': _some(held_out)}
    for model in create_loader(run.path)('all'):
        images, labels = model.sample(n=num_images), model.labels(n=num_images)
        fake = real_statistics.features_of(networks.features, images, batch_size)
        to_known, to_real = (neighbours.nearest(rows, fake, 1)[1] for rows in (known, real))
        kid, deviation = scores.kid(real, fake, SUBSETS, SUBSET_SIZE, config.seed)
        fakes = model.discriminate(images[:JUDGED], labels[:JUDGED])
        yield {
            'run': str(run.path),
            'step': model.step,
            'fid': scores.fid(real, fake),
            'kid': kid,
            'kid_std': deviation,
            'nearest': float((to_known <= to_real + 1e-4).mean()),
            **{
                name: _share_of_pairs(model.discriminate(*some), fakes)
                for name, some in judged.items()
            },
        }


def _some(source: data.Source) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced images, uint8 [n, S, S, 3], and their labels, int32 [n]."""
    indices = np.unique(np.linspace(0, len(source) - 1, min(JUDGED, len(source))).astype(int))
    examples = [source.examples[index] for index in indices]
    images = np.stack([example['image'] for example in examples])
    return images, np.array([example['label'] for example in examples], np.int32)


def _share_of_pairs(higher: np.ndarray, lower: np.ndarray) -> float:
    """The share of pairs in which the first logit is higher: the area under the ROC curve."""
    return float(stats.mannwhitneyu(higher, lower).statistic / (len(higher) * len(lower)))


if __name__ == '__main__':
    main()

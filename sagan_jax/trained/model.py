"""A trained model, as `sagan_jax.load` returns it."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from sagan_jax import models, sampling
from sagan_jax.configuration import checks, resolving
from sagan_jax.errors import UserError
from sagan_jax.models import Network, Variables
from sagan_jax.run import checkpoints, integrity
from sagan_jax.run.folder import RunFolder
from sagan_jax.sampling import Randomness
from sagan_jax.state import state_shapes
from sagan_jax.streams import Stream
from sagan_jax.trained.programs import Programs, create_generate, create_programs

Classes = Sequence[str | int]  # names or indices

_SEEDS = 2**32
_MAX_TRUNCATION = 5.0  # fewer than one normal number in a million is larger in magnitude


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The frozen generator and the discriminator of a checkpoint.

    Image i depends only on the seed, on i and on its class, up to rounding: neither the other
    images nor the number of devices affect it. Images are drawn on all local devices,
    `config.evaluation.batch_size` at a time on each.

    Attributes:
      run: the folder of the run or of the export.
      config: of the run.
      class_names: labels are indices into these.
      step: of the checkpoint.
      sha256: of the generator in the checkpoint.
      generator: frozen weights, see `sampling.create_freeze`.
      discriminator: its variables, as trained; None of an export, or if it was converted from files
        without one.
      origin: of a converted run, see `conversion.Converted`; None for a run that was trained here.
      networks: the generator and the discriminator as functions.
      programs: the compiled functions that the methods call.
    """

    run: RunFolder
    config: ml_collections.ConfigDict = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    step: int
    sha256: str
    generator: Variables = dataclasses.field(repr=False)
    discriminator: Variables | None = dataclasses.field(repr=False)
    origin: dict[str, Any] | None = dataclasses.field(repr=False)
    networks: tuple[Network, Network] = dataclasses.field(repr=False)
    programs: Programs = dataclasses.field(repr=False)

    # ---- Images. -------------------------------------------------------------------------------

    def sample(
        self,
        classes: Classes | None = None,
        n: int = 16,
        seed: int = 0,
        truncation: float | None = None,
    ) -> np.ndarray:
        """Draws the images 0 … n - 1 of a seed.

        Args:
          classes: names or indices of classes, repeated in this order. All classes by default.
          n: the number of images.
          seed: from 0 to 2³² - 1.
          truncation: a threshold for z, at most 5, see `sampling.indexed_noise`. A lower threshold
            makes images more typical and less varied. None for no threshold.

        Returns:
          uint8 [n, S, S, 3].

        Raises:
          UserError: if a class does not exist, or an argument is out of range.
        """
        stream = self.stream(np.arange(n), self.labels(classes, n), seed, truncation)
        return np.concatenate(list(stream))

    def stream(
        self, indices: np.ndarray, labels: np.ndarray, seed: int, truncation: float | None = None
    ) -> Iterator[np.ndarray]:
        """Yields the images with these indices and labels, both integers [n], batch by batch.

        Batches are uint8 [b, S, S, 3].
        """
        return self.programs.sample(self.generator, indices, labels, randomness(seed, truncation))

    def sample_rows(self, labels: np.ndarray, columns: int, seed: int = 0) -> np.ndarray:
        """Draws the images 0 … n - 1 of a seed in rows, one label per row.

        Returns uint8 [rows · columns, S, S, 3], row by row. The sample grids of a run show these
        images for the run's seed. See `sampling.sample_rows`.
        """
        return sampling.sample_rows(self.programs.sample, self.generator, labels, columns, seed)

    def labels(self, classes: Classes | None = None, n: int = 16) -> np.ndarray:
        """The labels of the images that `sample` draws, int32 [n]."""
        return labels_of(self.config, self.class_names, classes, n)

    def noise(self, n: int = 16, seed: int = 0, truncation: float | None = None) -> np.ndarray:
        """The z of the images that `sample` draws, float32 [n, z_dim]."""
        _check_count(n)
        indices, z_dim = np.arange(n, dtype=np.int32), self.config.model.z_dim
        checked_seed, threshold = randomness(seed, truncation)
        return np.asarray(
            sampling.indexed_noise(checked_seed, Stream.SAMPLE_NOISE, indices, z_dim, threshold)
        )

    def generate(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Applies the generator: z float32 [n, z_dim] → images float32 [n, S, S, 3] in [-1, 1].

        Labels are int32 [n].
        """
        return np.concatenate(list(self.programs.generate(self.generator, z, labels)))

    def attention(
        self,
        index: int,
        label: int,
        query: tuple[float, float],
        seed: int = 0,
        truncation: float | None = None,
    ) -> dict[int, np.ndarray]:
        """Computes the attention maps of one query location in an image that `sample` draws.

        Args:
          index, label: of the image.
          query: row and column of the location, as fractions of the height and width, in [0, 1).
          seed, truncation: see `sample`.

        Returns:
          A map float32 [k, k] with sum 1 for each attention layer, by the layer's resolution in
          ascending order. Empty for a generator without attention.
        """
        image = np.array([index], np.int32), np.array([label], np.int32)
        maps = self.programs.attention(
            self.generator, randomness(seed, truncation), *image, np.array(query, np.float32)
        )
        return {resolution: _square(np.asarray(row)) for resolution, row in sorted(maps.items())}

    # ---- Interpolations. -----------------------------------------------------------------------

    def interpolate_noise(
        self,
        classes: Classes | None = None,
        n: int = 8,
        seed: int = 0,
        truncation: float | None = None,
        steps: int = 8,
    ) -> np.ndarray:
        """Interpolates between pairs of z, one class per row: uint8 [n, steps, S, S, 3].

        Row i starts at the z of image 2i and ends at the z of image 2i + 1, see `sampling.slerp`.
        `sample` describes the other arguments and the errors.
        """
        labels = self.labels(classes, n)
        ends = self.noise(2 * n, seed, truncation)
        z = sampling.slerp(ends[::2], ends[1::2], steps)
        images = self.generate(z.reshape(n * steps, -1), labels.repeat(steps))
        return np.asarray(sampling.to_uint8(images)).reshape(n, steps, *images.shape[1:])

    def interpolate_classes(
        self,
        classes: Classes,
        n: int = 8,
        seed: int = 0,
        truncation: float | None = None,
        steps: int = 8,
    ) -> np.ndarray:
        """Interpolates from class to class, in the given order: uint8 [n, steps, S, S, 3].

        Row i has the z of image i. See `sampling.mix_classes` for the classes in between. `sample`
        describes the other arguments and the errors. At least two classes are required.
        """
        if len(classes) < 2:
            raise UserError(
                f'An interpolation between classes needs at least two, not {len(classes)}: name '
                'two or more classes.'
            )
        z = self.noise(n, seed, truncation).repeat(steps, axis=0)
        corners = np.eye(len(self.class_names))[self.labels(classes, len(classes))]
        between = np.linspace(0, len(corners) - 1, steps)
        mixtures = [np.interp(between, range(len(corners)), share) for share in corners.T]
        generator, frozen = sampling.mix_classes(
            self.config, self.generator, np.stack(mixtures, 1, dtype=np.float32)
        )
        labels = np.tile(np.arange(steps, dtype=np.int32), n)
        generate = create_generate(generator, self.config.evaluation.batch_size)
        images = np.concatenate(list(generate(frozen, z, labels)))
        return np.asarray(sampling.to_uint8(images)).reshape(n, steps, *images.shape[1:])

    # ---- The discriminator. --------------------------------------------------------------------

    def discriminate(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The discriminator's logits, float32 [n]. Higher logits mean more realistic images.

        Images are uint8 [n, S, S, 3], labels int32 [n].

        Raises:
          UserError: if there is no discriminator.
        """
        if self.discriminator is None:
            raise UserError(
                'This model has no discriminator, because it was exported, or converted from '
                'published files without one: load the run, or convert it again with its file.'
            )
        return np.concatenate(list(self.programs.discriminate(self.discriminator, images, labels)))


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = 'newest',
    config: ml_collections.ConfigDict | None = None,
) -> Model:
    """Loads and freezes a checkpoint of a run: the averaged generator if the run has one.

    Reads only the run's folder; the training data are not needed.

    Args:
      workdir: the run's folder.
      checkpoint: 'newest', 'best' or a step.
      config: see `create_loader`.

    Raises:
      UserError: if there is no such run or checkpoint, or it has another configuration.
    """
    return load_one(create_loader(workdir, config), checkpoint)


def load_one(load_each: Callable[[str | int], Iterator[Model]], checkpoint: str | int) -> Model:
    """Loads the model of one checkpoint with `load_each` of `create_loader`."""
    if checkpoint == 'all':
        raise UserError(
            'Only one checkpoint can be used here, not all: choose newest, best or a step.'
        )
    (model,) = load_each(checkpoint)
    return model


def create_loader(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict | None = None
) -> Callable[[str | int], Iterator[Model]]:
    """Builds `load_each(which)`, which yields models of a run that share compiled programs.

    `which` is 'newest', 'best', 'all' or a step. Models are in the order of the steps.

    Args:
      workdir: the run's folder.
      config: the run's configuration; keys that do not change the networks may differ. Read from
        the folder by default.

    Raises:
      UserError: if there is no such run, or `checks.check` refuses its configuration. `load_each`
        raises it if there is no such checkpoint.
    """
    run = RunFolder(Path(workdir))
    config, class_names = config or run.config(), run.class_names()
    checks.check(config)
    config = resolving.resolve(config, run.num_classes, run.num_images)
    origin, has_discriminator = run.record().get('origin'), run.has_discriminator()
    networks, freeze = models.create(config), sampling.create_freeze(config)
    programs = create_programs(config, *networks)

    def load_each(which):
        with checkpoints.chosen(config, run, which, state_shapes(config)) as states:
            for step, state in states:
                yield Model(
                    run=run,
                    config=config,
                    class_names=class_names,
                    step=step,
                    sha256=integrity.sha256(state.averaged),
                    generator=freeze(state.averaged),
                    discriminator=state.discriminator if has_discriminator else None,
                    origin=origin,
                    networks=networks,
                    programs=programs,
                )

    return load_each


def labels_of(
    config: ml_collections.ConfigDict,
    class_names: Sequence[str],
    classes: Classes | None = None,
    n: int = 16,
) -> np.ndarray:
    """The labels of n images whose classes cycle, int32 [n]. See `Model.sample`."""
    _check_count(n)
    if isinstance(classes, str):
        classes = [classes]
    if classes and config.model.conditioning == 'none':
        raise UserError('This generator was trained without classes: leave out the classes.')
    if not classes:
        return np.arange(n, dtype=np.int32) % len(class_names)
    return np.resize(sampling.class_indices(classes, class_names), n)


def randomness(seed: int, truncation: float | None) -> Randomness:
    """Checks a seed and a truncation threshold. Raises UserError if one is out of range."""
    if not 0 <= seed < _SEEDS:
        raise UserError(f'The seed {seed} is out of range: choose one from 0 to {_SEEDS - 1}.')
    if truncation is not None and not 0 < truncation <= _MAX_TRUNCATION:
        raise UserError(
            f'The truncation {truncation} is out of range: choose a threshold above 0 and at most '
            f'{_MAX_TRUNCATION:g}, or none.'
        )
    threshold = None if truncation is None else np.float32(truncation)
    return Randomness(np.uint32(seed), threshold)


def _square(row: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(row))
    return row.reshape(side, side)


def _check_count(n: int) -> None:
    if n < 1:
        raise UserError(f'Cannot draw {n} images: choose at least 1.')

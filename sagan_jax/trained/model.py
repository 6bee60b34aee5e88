"""A trained model, frozen: what `sagan_jax.load` returns."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from sagan_jax import models, sampling
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.models import Network, Variables
from sagan_jax.run import checkpoints
from sagan_jax.run.folder import RunFolder
from sagan_jax.sampling import Randomness
from sagan_jax.state import state_shapes
from sagan_jax.streams import Stream
from sagan_jax.trained.programs import Programs, create_generate, create_programs

Classes = Sequence[str | int]  # names or numbers

_SEEDS = 2**32
_MAX_TRUNCATION = 5.0  # a threshold that less than one normal number in a million passes


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A generator and its discriminator, which nothing changes any more.

    Images have numbers: image i is a function of the seed, of i and of its class alone, up to
    rounding, whatever the images beside it and the number of devices. They are drawn on all local
    devices, `config.evaluation.batch_size` at a time.

    Attributes:
      config: of the run.
      class_names: labels are indices into these.
      step: of the checkpoint.
      sha256: of the generator in the checkpoint.
      generator: weights with σ folded in and fixed batch statistics, see `sampling.create_freeze`.
      discriminator: its variables as they were trained.
      networks: the functions of the generator and of the discriminator.
      programs: what the methods run.
    """

    config: ml_collections.ConfigDict = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    step: int
    sha256: str
    generator: Variables = dataclasses.field(repr=False)
    discriminator: Variables = dataclasses.field(repr=False)
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
        """Images 0 … n - 1 of a seed, uint8 [n, S, S, 3].

        Args:
          classes: names or numbers, which are taken in turn; all classes by default.
          n: how many images.
          seed: from 0 to 2³² - 1.
          truncation: a threshold for z, up to 5, see `sampling.indexed_noise`: the lower, the more
            typical and alike the images. None for no threshold.

        Raises:
          UserError: for a class that does not exist, or a number out of its range.
        """
        stream = self.stream(np.arange(n), self.labels(classes, n), seed, truncation)
        return np.concatenate(list(stream))

    def stream(
        self, indices: np.ndarray, labels: np.ndarray, seed: int, truncation: float | None = None
    ) -> Iterator[np.ndarray]:
        """The images with these numbers and labels, both integers [n], batch by batch."""
        return self.programs.sample(self.generator, indices, labels, randomness(seed, truncation))

    def sample_rows(self, labels: np.ndarray, columns: int, seed: int = 0) -> np.ndarray:
        """Images in rows, one label per row: uint8 [rows · columns, S, S, 3].

        They are the images 0 … n - 1 of the seed whose labels are taken in turn, see
        `sampling.sample_rows`. The sample grids of a run are such rows, of the run's own seed.
        """
        return sampling.sample_rows(self.programs.sample, self.generator, labels, columns, seed)

    def labels(self, classes: Classes | None = None, n: int = 16) -> np.ndarray:
        """The labels of `sample`'s images, int32 [n]."""
        return labels_of(self.config, self.class_names, classes, n)

    def noise(self, n: int = 16, seed: int = 0, truncation: float | None = None) -> np.ndarray:
        """The z of `sample`'s images, float32 [n, z_dim]."""
        _check_count(n)
        indices, z_dim = np.arange(n, dtype=np.int32), self.config.model.z_dim
        drawn, threshold = randomness(seed, truncation)
        return np.asarray(
            sampling.indexed_noise(drawn, Stream.SAMPLE_NOISE, indices, z_dim, threshold)
        )

    def generate(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The generator's own images of any z: float32 [n, S, S, 3] in [-1, 1].

        z is float32 [n, z_dim], labels are int32 [n].
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
        """What a place in `sample`'s image of a number takes from where: a map for each layer.

        Args:
          number, label: of the image.
          place: row and column, from 0 to below 1, as parts of the image's height and width.
          seed, truncation: as for `sample`.

        Returns:
          By the resolution of the layer, in order: float32 [k, k], whose sum is 1. Empty for a
          generator without attention.
        """
        asked = np.array([index], np.int32), np.array([label], np.int32)
        maps = self.programs.attention(
            self.generator, randomness(seed, truncation), *asked, np.array(query, np.float32)
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
        """From one z to another, a class a row: uint8 [n, steps, S, S, 3].

        Row i goes from the z of number 2i to that of 2i + 1, see `sampling.slerp`. The
        other arguments, and what is raised, are those of `sample`.
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
        """From the first class through the next ones to the last: uint8 [n, steps, S, S, 3].

        Row i has the z of number i, and what is between two classes is mixed of them, see
        `sampling.mix_classes`. The other arguments, and what is raised, are those of `sample`.
        """
        if len(classes) < 2:
            raise UserError(
                'An interpolation between classes needs two of them or more: name them.'
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
        """The discriminator's logits, float32 [n]: the higher, the more like training pictures.

        Images are uint8 [n, S, S, 3], labels int32 [n].
        """
        return np.concatenate(list(self.programs.discriminate(self.discriminator, images, labels)))


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = 'newest',
    config: ml_collections.ConfigDict | None = None,
) -> Model:
    """Freezes a checkpoint of a run: the averaged generator, if there is one.

    Reads only the run's folder; the training data are not needed.

    Args:
      workdir: the run's folder.
      checkpoint: 'newest', 'best' or a step.
      config: see `create_loader`.

    Raises:
      UserError: when there is no such run or checkpoint, or it is of another configuration.
    """
    return load_one(create_loader(workdir, config), checkpoint)


def load_one(load_each: Callable[[str | int], Iterator[Model]], checkpoint: str | int) -> Model:
    """The model of a single checkpoint, see `load`, by what `create_loader` has built."""
    if checkpoint == 'all':
        raise UserError('One checkpoint is asked for: choose newest, best or a step.')
    (model,) = load_each(checkpoint)
    return model


def create_loader(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict | None = None
) -> Callable[[str | int], Iterator[Model]]:
    """Builds `load_each(which) -> models` for one run, whose models share what is compiled.

    `which` is 'newest', 'best', 'all' or a step; models of several steps come in their order.

    Args:
      workdir: the run's folder.
      config: the run's configuration, in which what does not change the networks may differ; by
        default as the folder has it.

    Raises:
      UserError: when there is no such run, or `checks.check` refuses its configuration; and
        `load_each` does.
    """
    run = RunFolder(Path(workdir))
    config, class_names = config or run.config(), run.class_names()
    checks.check(config)
    networks, freeze = models.create(config), sampling.create_freeze(config)
    programs = create_programs(config, *networks)

    def load_each(which):
        with checkpoints.chosen(config, run, which, state_shapes(config)) as states:
            for step, state in states:
                yield Model(
                    config=config,
                    class_names=class_names,
                    step=step,
                    sha256=_sha256(state.averaged),
                    generator=freeze(state.averaged),
                    discriminator=state.discriminator,
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
    """The labels of n images of some classes in turn, int32 [n], see `Model.sample`."""
    _check_count(n)
    if isinstance(classes, str):
        classes = [classes]
    if classes and config.model.conditioning == 'none':
        raise UserError('This generator was trained without classes: ask for none.')
    if not classes:
        return np.arange(n, dtype=np.int32) % len(class_names)
    return np.resize(sampling.class_indices(classes, class_names), n)


def randomness(seed: int, truncation: float | None) -> Randomness:
    """What images depend on beside their numbers and classes; raises UserError out of range."""
    if not 0 <= seed < _SEEDS:
        raise UserError(f'{seed} is no seed: take one from 0 to {_SEEDS - 1}.')
    if truncation is not None and not 0 < truncation <= _MAX_TRUNCATION:
        raise UserError(
            f'{truncation} is no threshold for the truncation: take one above 0 and up to '
            f'{_MAX_TRUNCATION:g}, or none.'
        )
    threshold = None if truncation is None else np.float32(truncation)
    return Randomness(np.uint32(seed), threshold)


def _square(row: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(row))
    return row.reshape(side, side)


def _check_count(n: int) -> None:
    if n < 1:
        raise UserError(f'{n} images cannot be drawn: ask for 1 or more.')


def _sha256(variables: Variables) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(checkpoints.named_leaves(variables).items()):
        digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

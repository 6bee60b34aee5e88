"""A trained model, frozen: what `sagan_jax.load` gives."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sagan_jax import models, sampling
from sagan_jax.errors import UserError
from sagan_jax.metrics.features import on_devices
from sagan_jax.models import Variables
from sagan_jax.run import checkpoints
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import create_state
from sagan_jax.streams import Stream

Classes = Sequence[str | int]  # names or numbers

_SEEDS = 2**32
_MOST_TRUNCATION = 5.0  # a threshold that less than one normal number in a million passes


class Programs(NamedTuple):
    """What runs on the devices, but for the last for `on_devices`: compiled once for all models of
    a loader."""

    draw: Callable  # ({'generator', 'randomness'}, (numbers, labels)) → uint8 images
    generate: Callable  # (generator, (z, labels)) → float32 images in [-1, 1]
    judge: Callable  # (discriminator, (uint8 images, labels)) → logits
    attend: Callable  # ({'generator', 'randomness'}, (number, label), place) → rows of maps


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
      programs: what the methods run.
    """

    config: ml_collections.ConfigDict = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    step: int
    sha256: str
    generator: Variables = dataclasses.field(repr=False)
    discriminator: Variables = dataclasses.field(repr=False)
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
          truncation: a threshold for z, up to 5, see `sampling.numbered_noise`: the lower, the more
            typical and alike the images. None for no threshold.

        Raises:
          UserError: for a class that does not exist, or a number out of its range.
        """
        stream = self.stream(np.arange(n), self.labels(classes, n), seed, truncation)
        return np.concatenate(list(stream))

    def stream(
        self, numbers: np.ndarray, labels: np.ndarray, seed: int, truncation: float | None = None
    ) -> Iterator[np.ndarray]:
        """The images with these numbers and labels, both integers [n], batch by batch."""
        variables = {'generator': self.generator, 'randomness': randomness(seed, truncation)}
        return self._stream(self.programs.draw, variables, numbers.astype(np.int32), labels)

    def labels(self, classes: Classes | None = None, n: int = 16) -> np.ndarray:
        """The labels of `sample`'s images, int32 [n]."""
        return labels_of(self.config, self.class_names, classes, n)

    def noise(self, n: int = 16, seed: int = 0, truncation: float | None = None) -> np.ndarray:
        """The z of `sample`'s images, float32 [n, z_dim]."""
        _check_count(n)
        numbers = np.arange(n, dtype=np.int32)
        return np.asarray(_numbered_noise(self.config, randomness(seed, truncation), numbers))

    def generate(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The generator's own images of any z: float32 [n, S, S, 3] in [-1, 1].

        z is float32 [n, z_dim], labels are int32 [n].
        """
        return np.concatenate(list(self._stream(self.programs.generate, self.generator, z, labels)))

    def attention(
        self,
        number: int,
        label: int,
        place: tuple[float, float],
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
        variables = {'generator': self.generator, 'randomness': randomness(seed, truncation)}
        asked = np.array([number], np.int32), np.array([label], np.int32)
        maps = self.programs.attend(variables, asked, np.array(place, np.float32))
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

        Row i goes from the z of number 2i to that of 2i + 1, see `sampling.great_circles`. The
        other arguments, and what is raised, are those of `sample`.
        """
        labels = self.labels(classes, n)
        ends = self.noise(2 * n, seed, truncation)
        z = sampling.great_circles(ends[::2], ends[1::2], steps)
        images = self.generate(z.reshape(n * steps, -1), labels.repeat(steps))
        return np.asarray(sampling.levels(images)).reshape(n, steps, *images.shape[1:])

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
        images = np.concatenate(list(self._stream(_generate(generator), frozen, z, labels)))
        return np.asarray(sampling.levels(images)).reshape(n, steps, *images.shape[1:])

    # ---- The discriminator. --------------------------------------------------------------------

    def score(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The discriminator's logits, float32 [n]: the higher, the more like training pictures.

        Images are uint8 [n, S, S, 3], labels int32 [n].
        """
        stream = self._stream(self.programs.judge, self.discriminator, images, labels)
        return np.concatenate(list(stream))

    def _stream(
        self, program: Callable, variables: dict, *rows: np.ndarray
    ) -> Iterator[np.ndarray]:
        size = min(self.config.evaluation.batch_size, len(rows[0]))
        for part in on_devices(program, size)(variables, [rows]):
            yield part['result']


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = 'newest',
    config: ml_collections.ConfigDict | None = None,
) -> Model:
    """Freezes a checkpoint of a run: the averaged generator, where there is one.

    Nothing is read but the folder of the run; its data need not be there.

    Args:
      workdir: the run's folder.
      checkpoint: 'newest', 'best' or a step.
      config: see `create_loader`.

    Raises:
      UserError: when there is no such run or checkpoint, or it is of another configuration.
    """
    return create_loader(workdir, config)(checkpoint)


def create_loader(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict | None = None
) -> Callable[[str | int], Model]:
    """Builds `load(checkpoint) -> model` for one run, whose models share what is compiled.

    Args:
      workdir: the run's folder.
      config: the run's configuration, in which what does not change the networks may differ; by
        default as the folder has it.

    Raises:
      UserError: when there is no such run; and `load` does, see there.
    """
    run = RunFolder(Path(workdir))
    config, class_names = config or run.config(), run.class_names()
    freeze, programs = sampling.create_freeze(config), _create_programs(config)

    def load(checkpoint):
        if checkpoint == 'all':
            raise UserError('One checkpoint is asked for: choose newest, best or a step.')
        manager, steps = checkpoints.choose(config, run, checkpoint)
        like = jax.eval_shape(lambda: create_state(config))
        state = checkpoints.restore(manager, like, steps[-1])
        manager.close()
        trained = state.generator | {'params': state.ema_params}
        return Model(
            config=config,
            class_names=class_names,
            step=steps[-1],
            sha256=_sha256(trained),
            generator=freeze(trained),
            discriminator=state.discriminator,
            programs=programs,
        )

    return load


def _create_programs(config: ml_collections.ConfigDict) -> Programs:
    generator, discriminator = models.create(config)

    def draw(variables, rows):
        numbers, labels = rows
        z = _numbered_noise(config, variables['randomness'], numbers)
        images, _ = generator.apply(variables['generator'], z, labels, train=False)
        return {'result': sampling.levels(images)}

    def judge(variables, rows):
        images, labels = rows
        images = images.astype(np.float32) / 127.5 - 1
        logits, _ = discriminator.apply(variables, images, labels, train=False)
        return {'result': logits[0] if config.model.conditioning == 'acgan' else logits}

    @jax.jit
    def attend(variables, asked, place):
        numbers, labels = asked
        z = _numbered_noise(config, variables['randomness'], numbers)
        maps = generator.attention(variables['generator'], z, labels)

        def row(resolution, weights):
            at = jnp.clip((place * resolution).astype(jnp.int32), 0, resolution - 1)
            return weights[0, at[0] * resolution + at[1]]

        return {resolution: row(resolution, weights) for resolution, weights in maps.items()}

    return Programs(draw, _generate(generator), judge, attend)


def _generate(generator: models.Network) -> Callable:
    return lambda frozen, rows: {'result': generator.apply(frozen, *rows, train=False)[0]}


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
    return np.resize(sampling.class_numbers(classes, class_names), n)


def randomness(seed: int, truncation: float | None) -> dict[str, Any]:
    """What images depend on beside their numbers and classes; raises UserError out of range."""
    if not 0 <= seed < _SEEDS:
        raise UserError(f'{seed} is no seed: take one from 0 to {_SEEDS - 1}.')
    if truncation is not None and not 0 < truncation <= _MOST_TRUNCATION:
        raise UserError(
            f'{truncation} is no threshold for the truncation: take one above 0 and up to '
            f'{_MOST_TRUNCATION:g}, or none.'
        )
    threshold = None if truncation is None else np.float32(truncation)
    return {'seed': np.uint32(seed), 'truncation': threshold}


def _square(row: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(row))
    return row.reshape(side, side)


def _check_count(n: int) -> None:
    if n < 1:
        raise UserError(f'{n} images cannot be drawn: ask for 1 or more.')


def _numbered_noise(config, randomness: dict[str, Any], numbers: jax.Array) -> jax.Array:
    return sampling.numbered_noise(
        randomness['seed'],
        Stream.NUMBERED_NOISE,
        numbers,
        config.model.z_dim,
        randomness['truncation'],
    )


def _sha256(variables: Variables) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(checkpoints.named_leaves(variables).items()):
        digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

"""The compiled functions of a trained model, shared by all models of a run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sagan_jax import sampling
from sagan_jax.models import Network, Variables
from sagan_jax.streams import Stream

# Variables and two arrays of n rows → results for these rows, batch by batch.
ByRows = Callable[[Variables, np.ndarray, np.ndarray], Iterator[np.ndarray]]


class Programs(NamedTuple):
    """Functions of the variables of a model. All but `attention` yield results batch by batch.

    Attributes:
      sample: see `sampling.create_sample`.
      generate: `generate(frozen, z, labels)` yields float32 images [b, S, S, 3] in [-1, 1].
      discriminate: `discriminate(variables, images, labels)` yields logits float32 [b] for uint8
        images. `variables` are those of the discriminator.
      attention: `attention(frozen, randomness, index, label, query) -> {resolution: float32 [M]}`,
        see `Model.attention`; `index` and `label` are int32 [1], `query` is float32 [2].
    """

    sample: sampling.Sample
    generate: ByRows
    discriminate: ByRows
    attention: Callable[..., dict[int, jax.Array]]


def create_programs(
    config: ml_collections.ConfigDict, generator: Network, discriminator: Network
) -> Programs:
    """Creates the programs of a run's models. All but `attention` use all local devices."""
    z_dim, batch_size = config.model.z_dim, config.evaluation.batch_size
    with_classes = config.model.conditioning == 'acgan'

    def logits(variables, rows):
        images, labels = rows
        images = images.astype(np.float32) / 127.5 - 1
        weights, _ = discriminator.normalise(variables)
        outputs, _ = discriminator.apply(weights, images, labels, train=False)
        return outputs[0] if with_classes else outputs

    def discriminate(variables, images, labels):
        return sampling.by_rows(logits, batch_size, variables, images, labels)

    @jax.jit
    def attention(frozen, randomness, index, label, query):
        seed, truncation = randomness
        z = sampling.indexed_noise(seed, Stream.SAMPLE_NOISE, index, z_dim, truncation)
        maps = generator.attention(frozen, z, label)

        def row(resolution, weights):
            at = jnp.clip((query * resolution).astype(jnp.int32), 0, resolution - 1)
            return weights[0, at[0] * resolution + at[1]]

        return {resolution: row(resolution, weights) for resolution, weights in maps.items()}

    return Programs(
        sample=sampling.create_sample(generator, z_dim, batch_size),
        generate=create_generate(generator, batch_size),
        discriminate=discriminate,
        attention=attention,
    )


def create_generate(generator: Network, batch_size: int) -> ByRows:
    """Builds `Programs.generate` for a generator."""

    def images(frozen, rows):
        return generator.apply(frozen, *rows, train=False)[0]

    def generate(frozen, z, labels):
        return sampling.by_rows(images, batch_size, frozen, z, labels)

    return generate

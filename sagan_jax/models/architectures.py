"""The networks' shapes, as tables. Widths are multiples of the configuration's base width."""

from typing import NamedTuple

from sagan_jax.errors import UserError


class Architecture(NamedTuple):
    """The widths of a generator and of its discriminator.

    Attributes:
      generator: the 4×4 start, then one up block for each doubling: 8×8, 16×16, …
      discriminator: one block each, from the image inwards.
      downs: how many of the discriminator's blocks, counted from the image, halve the resolution.
    """

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    downs: int


# name → image size → widths
ARCHITECTURES = {
    # 128: the official SAGAN. 64: the same without its outermost block pair. 32: SNGAN's networks
    # for CIFAR-10 (Miyato et al. 2018, table 4). 256: BigGAN's (Brock et al. 2019, table 8).
    'sagan': {
        32: Architecture((4, 4, 4, 4), (2, 2, 2, 2), downs=2),
        64: Architecture((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), downs=4),
        128: Architecture((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), downs=5),
        256: Architecture((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), downs=6),
    },
    # Widths halve as the resolution doubles: a fraction of the cost at 32×32.
    'pyramid': {
        32: Architecture((4, 4, 2, 1), (1, 2, 4, 4), downs=3),
    },
    # Radford et al. 2016, figure 1, with their widths halved as in most implementations; every
    # layer halves or doubles the resolution, and the generator's last one makes the image.
    'dcgan': {
        32: Architecture((4, 2, 1), (1, 2, 4), downs=3),
        64: Architecture((8, 4, 2, 1), (1, 2, 4, 8), downs=4),
        128: Architecture((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), downs=5),
        256: Architecture((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), downs=6),
    },
}


def architecture(name: str, image_size: int) -> Architecture:
    """The table entry, or a `UserError` that lists what there is."""
    if name not in ARCHITECTURES:
        raise UserError(
            f'There is no architecture {name!r}: choose --config.model.architecture from '
            f'{", ".join(ARCHITECTURES)}.'
        )
    sizes = ARCHITECTURES[name]
    if image_size not in sizes:
        raise UserError(
            f'The architecture {name!r} has no networks for dataset.image_size={image_size}: '
            f'it has them for {", ".join(map(str, sizes))}.'
        )
    return sizes[image_size]


def generator_resolutions(arch: Architecture) -> list[int]:
    """The resolutions that the generator's up blocks reach, in order."""
    return [8 * 2**i for i in range(len(arch.generator) - 1)]


def discriminator_resolutions(arch: Architecture, image_size: int) -> list[int]:
    """The resolution at the end of each of the discriminator's blocks, in order."""
    return [image_size // 2 ** min(i + 1, arch.downs) for i in range(len(arch.discriminator))]

"""Architectures as tables. Widths are multiples of the configuration's base width."""

from typing import NamedTuple


class Architecture(NamedTuple):
    """The widths of a generator and of its discriminator.

    Attributes:
      generator: of the 4×4 input, then of one block per doubling: 8×8, 16×16, …
      discriminator: of each block, from the image inwards.
      downs: the number of discriminator blocks, counted from the image, that halve the resolution.
    """

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    downs: int


# name → image size → widths
ARCHITECTURES = {
    # 128: the official SAGAN. 64: without its outermost pair of blocks. 32: SNGAN's networks
    # for CIFAR-10 (Miyato et al. 2018, table 4). 256: BigGAN's (Brock et al. 2019, table 8).
    'sagan': {
        32: Architecture((4, 4, 4, 4), (2, 2, 2, 2), downs=2),
        64: Architecture((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), downs=4),
        128: Architecture((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), downs=5),
        256: Architecture((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), downs=6),
    },
    # Widths halve when the resolution doubles, for a fraction of the cost at 32×32.
    'pyramid': {
        32: Architecture((4, 4, 2, 1), (1, 2, 4, 4), downs=3),
    },
    # Radford et al. 2016, figure 1, with half the widths as in most implementations. Every layer
    # halves or doubles the resolution. The generator's last layer, not listed, makes the image.
    'dcgan': {
        32: Architecture((4, 2, 1), (1, 2, 4), downs=3),
        64: Architecture((8, 4, 2, 1), (1, 2, 4, 8), downs=4),
        128: Architecture((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), downs=5),
        256: Architecture((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), downs=6),
    },
}


def generator_resolutions(arch: Architecture) -> list[int]:
    """The output resolution of each of the generator's blocks, in order."""
    return [8 * 2**i for i in range(len(arch.generator) - 1)]


def first_blocks(arch: Architecture, image_size: int, count: int) -> set[str]:
    """The layers up to the discriminator's block `count`, and the attention that follows these."""
    maps = discriminator_resolutions(arch, image_size)[:count]
    return {f'block{n}' for n in range(1, count + 1)} | {f'attention{k}' for k in maps}


def discriminator_resolutions(arch: Architecture, image_size: int) -> list[int]:
    """The output resolution of each of the discriminator's blocks, in order."""
    return [image_size // 2 ** min(i + 1, arch.downs) for i in range(len(arch.discriminator))]

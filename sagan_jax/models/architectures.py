"""Architectures as tables by rule. Widths are multiples of the configuration's base width."""

from collections.abc import Sequence
from typing import NamedTuple


class Architecture(NamedTuple):
    """The widths of a generator and of its discriminator.

    Attributes:
      generator: of the input, then of one block per doubling of the resolution.
      discriminator: of each block, from the image inwards.
      downs: the number of discriminator blocks, counted from the image, that halve the resolution.
      start: the height and width of the generator's input, 4 or 3.
    """

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    downs: int
    start: int = 4


def _halving(doublings: int, largest: int) -> tuple[int, ...]:
    """Widths from the generator's input outwards, which halve when the resolution doubles."""
    return tuple(min(largest, 2**n) for n in range(doublings, -1, -1))


def _sagan(doublings: int) -> Architecture:
    """Five doublings, 128: the official SAGAN, whose widths halve below 16. 64 likewise.

    Three, 32: SNGAN's networks for CIFAR-10 (Miyato et al. 2018, table 4). Six and seven, 256 and
    512: BigGAN's (Brock et al. 2019, tables 8 and 9), which go on outwards with width 1.
    """
    if doublings == 3:
        return Architecture((4, 4, 4, 4), (2, 2, 2, 2), downs=2)
    widths = _halving(doublings, largest=16)
    if doublings > 5:
        widths = (16, 16, 8, 8, 4, 2, 1) + (1,) * (doublings - 6)
    return Architecture(widths, widths[::-1], doublings)


def _pyramid(doublings: int) -> Architecture:
    """Widths halve below 4, for a fraction of the cost of 'sagan' at 32×32."""
    widths = _halving(doublings, largest=4)
    return Architecture(widths, widths[::-1], doublings)


def _dcgan(doublings: int) -> Architecture:
    """Radford et al. 2016, figure 1, with half the widths as in most implementations.

    Every layer halves or doubles the resolution. The generator's last layer, not listed, makes the
    image.
    """
    widths = _halving(doublings - 1, largest=16)
    return Architecture(widths, widths[::-1], doublings)


# name → image size → widths. Images of 3·2^k, such as 48, have the widths of those of 4·2^k, such
# as 64, from 3×3 on: at 48 the discriminator of 'sagan' is SNGAN's for STL-10 (Miyato et al. 2018,
# table 5).
ARCHITECTURES = {
    name: dict(
        sorted(
            (start * 2**doublings, rule(doublings)._replace(start=start))
            for doublings in range(3, 9)
            for start in (3, 4)
        )
    )
    for name, rule in (('sagan', _sagan), ('pyramid', _pyramid), ('dcgan', _dcgan))
}


def generator_resolutions(arch: Architecture) -> list[int]:
    """The output resolution of each of the generator's blocks, in order."""
    return [arch.start * 2**n for n in range(1, len(arch.generator))]


def first_blocks(arch: Architecture, image_size: int, count: int) -> set[str]:
    """The layers up to the discriminator's block `count`, and the attention that follows these."""
    maps = discriminator_resolutions(arch, image_size)[:count]
    return {f'block{n}' for n in range(1, count + 1)} | {f'attention{k}' for k in maps}


def discriminator_resolutions(arch: Architecture, image_size: int) -> list[int]:
    """The output resolution of each of the discriminator's blocks, in order."""
    return [image_size // 2 ** min(i + 1, arch.downs) for i in range(len(arch.discriminator))]


def attention_resolutions(name: str, image_size: int) -> tuple[list[int], list[int]]:
    """The resolutions at which the generator, and the discriminator, can have attention.

    They are even, because keys are pooled 2×2.
    """
    if name == 'dcgan':
        return [], []
    arch = ARCHITECTURES[name][image_size]
    maps = generator_resolutions(arch), discriminator_resolutions(arch, image_size)
    generator, discriminator = ([k for k in sorted(set(found)) if k % 2 == 0] for found in maps)
    return generator, discriminator


def usual_attention(possible: Sequence[int]) -> tuple[int, ...]:
    """Attention where none was asked for: at the possible resolution nearest to 16."""
    return tuple(sorted(possible, key=lambda k: abs(k - 16))[:1])

"""The rule gives the published tables, and networks of every size."""

import pytest

from sagan_jax.models.architectures import (
    ARCHITECTURES,
    attention_resolutions,
    discriminator_resolutions,
    generator_resolutions,
    usual_attention,
)

# Generator, discriminator, and how many blocks of the discriminator halve the resolution: of the
# papers and official code that architectures.py names.
PUBLISHED = {
    ('sagan', 32): ((4, 4, 4, 4), (2, 2, 2, 2), 2),
    ('sagan', 64): ((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4),
    ('sagan', 128): ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
    ('sagan', 256): ((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6),
    ('sagan', 512): ((16, 16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16), 7),
    ('pyramid', 32): ((4, 4, 2, 1), (1, 2, 4, 4), 3),
    ('dcgan', 32): ((4, 2, 1), (1, 2, 4), 3),
    ('dcgan', 64): ((8, 4, 2, 1), (1, 2, 4, 8), 4),
    ('dcgan', 128): ((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 5),
    ('dcgan', 256): ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 6),
}


@pytest.mark.parametrize(('name', 'size'), PUBLISHED)
def test_the_rule_gives_the_published_tables(name, size):
    assert ARCHITECTURES[name][size] == (*PUBLISHED[name, size], 4)


def test_the_discriminator_at_48_is_that_of_sngan_for_stl10():
    arch = ARCHITECTURES['sagan'][48]
    assert (arch.discriminator, arch.downs, arch.start) == ((1, 2, 4, 8, 16), 4, 3)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_every_size_is_reached_and_has_attention_nearest_to_16(name):
    sizes = ARCHITECTURES[name]
    assert list(sizes) == [24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    for size, arch in sizes.items():
        ups = len(arch.generator) - (name != 'dcgan')  # its last layer is not listed
        assert arch.start * 2**ups == size
        assert discriminator_resolutions(arch, size)[-1] in (arch.start, 2 * arch.start)
        assert sorted(arch.generator, reverse=True) == list(arch.generator)
        possible = attention_resolutions(name, size)
        if name == 'dcgan':
            assert possible == ([], [])
            assert usual_attention([]) == ()
            continue
        assert possible[0] == generator_resolutions(arch)
        for resolutions in possible:
            assert usual_attention(resolutions) == ((16,) if size % 3 else (12,))

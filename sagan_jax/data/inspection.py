"""What in the training images spoils a run, found before the run."""

from collections.abc import Iterator, Sequence

import numpy as np

from sagan_jax.data.loading import Source
from sagan_jax.data.reading import Summary
from sagan_jax.errors import printable

FEW = 10  # images of a class, below which their number is reported
NAMED = 5  # classes that are named; the others are only counted

# Shares of the images above which a property is reported.
MANY_COPIES = 0.02
MANY_GREY = 0.05
MANY_ALIKE = 0.1

_MIXED = 1.5  # between the aspect ratios of 5 % and of 95 % of the images


def warnings(source: Source, summary: Summary, conditional: bool) -> list[str]:
    """One line for each property of the training images that spoils a run.

    Each says what was found in how many images, what follows, and what to do.

    Args:
      source: the training images.
      summary: of their first images.
      conditional: whether the networks are trained with classes.
    """
    return [
        *_of_labels(source, conditional),
        *_of_copies(source),
        *_of_pixels(summary, source.channels),
        *_of_shapes(source.aspects),
    ]


def _of_labels(source: Source, conditional: bool) -> Iterator[str]:
    total = len(source)
    counts = np.zeros(len(source.class_names), int)
    counts[: len(source.content.label_counts)] = source.content.label_counts
    if not conditional:
        if total < FEW:
            yield f'there are only {total} images, which samples will copy: add more'
        return
    if np.count_nonzero(counts) == 1:
        yield (
            f'all {total:,} images have the same class, so that there is nothing to learn about '
            'classes: set --config.model.conditioning=none'
        )
        return
    few = [label for label, count in enumerate(counts) if count < FEW]
    if few:
        names = [f'{printable(source.class_names[n])} {counts[n]}' for n in few[:NAMED]]
        yield (
            f'{_counted(few, "class has", "classes have")} fewer than {FEW} images '
            f'({", ".join(names)}{", …" * (len(few) > NAMED)}), which samples will copy: add '
            'images, or leave out such classes'
        )


def _of_copies(source: Source) -> Iterator[str]:
    copies, total = source.content.copies, len(source)
    if copies > MANY_COPIES * total:
        yield (
            f'{copies:,} of {total:,} images are copies of another one, which the discriminator '
            'learns by heart: remove copies'
        )


def _of_pixels(summary: Summary, channels: int) -> Iterator[str]:
    total = summary.num_images
    if channels == 3 and summary.num_grey == total:
        yield (
            f'the first {total:,} images are all grey: set --config.dataset.channels=1, and all '
            'samples are grey too'
        )
    elif channels == 3 and summary.num_grey > MANY_GREY * total:
        yield (
            f'{summary.num_grey:,} of the first {total:,} images are grey, and as many samples '
            'will be: remove grey images if colour is wanted'
        )
    if summary.num_alike > MANY_ALIKE * total:
        yield (
            f'{summary.num_alike:,} of the first {total:,} images are nearly the same as another '
            'one, as frames of a film are, and samples will vary as little: keep one of each group'
        )


def _of_shapes(aspects: Sequence[float]) -> Iterator[str]:
    """`aspects`: width / height of files."""
    if not len(aspects):
        return
    narrow, wide = np.quantile(aspects, [0.05, 0.95], method='nearest')
    if wide > _MIXED * narrow:
        kept = np.minimum(aspects, 1 / np.asarray(aspects)).mean()
        yield (
            f'aspect ratios (width to height) range from {narrow:.2g} to {wide:.2g}, and the '
            f'centred square leaves out {1 - kept:.0%} of an average image: crop images yourself '
            'where that cuts off what matters'
        )


def _counted(found: Sequence, one: str, many: str) -> str:
    return f'{len(found):,} {one if len(found) == 1 else many}'

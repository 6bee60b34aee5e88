"""The drawings of the page /draw: samples, and what a pixel attends to."""

import functools
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import ml_collections
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.run.folder import RunFolder
from sagan_jax.trained.model import Model, create_loader, labels_of, randomness
from sagan_jax.viewing import page

MOST_IMAGES = 64
GREATEST_SEED = 2**32 - 1

_PART = 16  # images drawn in one go, after which another request may have its turn
_MOST_WAITING = 256  # requests for the device
_LONGEST_WAIT = 60  # seconds of one of them
_LONGEST_VALUE = 200  # characters


class Refused(Exception):
    """A request that is refused; the arguments are the HTTP status and a sentence."""


class _Run(NamedTuple):
    """A run with its newest model; see `_create_device`."""

    config: ml_collections.ConfigDict
    class_names: Sequence[str]
    device: Callable[[], AbstractContextManager[Model]]


def create_drawings(workdir: Path) -> dict[str, Callable[[str], dict[str, Any]]]:
    """Builds the functions of a query that answer 'samples' and 'attention', for any threads.

    Both raise UserError at once for a query that is not valid, and `Refused` when the device or a
    checkpoint is not available.

    Raises:
      UserError: when there is no run.
    """
    folder = RunFolder(workdir)
    run = _Run(folder.config(), folder.class_names(), _create_device(workdir))
    return {
        'samples': functools.partial(_samples, run),
        'attention': functools.partial(_attention, run),
    }


def _samples(run: _Run, query: str) -> dict[str, Any]:
    """Images 0 … n - 1 of a seed, see `Model.sample`, as data URIs, with their classes."""
    asked = _asked(query, ('class', 'seed', 'truncation', 'n'))
    n = _whole(asked, 'n', 16, 1, MOST_IMAGES)
    labels = labels_of(run.config, run.class_names, _classes(asked), n)
    seed, truncation = _randomness(asked)
    model, images = None, []
    for start in range(0, n, _PART):
        # Always `_PART` of them, so that there is one program.
        indices, some = np.arange(start, start + _PART), np.resize(labels[start:], _PART)
        with run.device() as newest:
            model = model or newest
            for batch in model.stream(indices, some, seed, truncation):
                images.extend(batch)
    conditional = run.config.model.conditioning != 'none'
    return {
        'step': model.step,
        'images': [
            {
                'source': page.data_uri(image, lossless=True),
                'class': run.class_names[label] if conditional else '',
            }
            for image, label in zip(images, labels, strict=False)  # the last part has more
        ],
    }


def _attention(run: _Run, query: str) -> dict[str, Any]:
    """The maps of a pixel in one of the samples, see `Model.attention`, layer by layer."""
    keys = ('class', 'seed', 'truncation', 'step', 'number', 'row', 'column')
    asked, size = _asked(query, keys), run.config.dataset.image_size
    number = _whole(asked, 'number', 0, 0, MOST_IMAGES - 1)
    row, column = (_whole(asked, key, 0, 0, size - 1) for key in ('row', 'column'))
    step = _whole(asked, 'step', None, 0, 10**10 - 1)
    label = labels_of(run.config, run.class_names, _classes(asked), number + 1)[number]
    seed, truncation = _randomness(asked)
    with run.device() as model:
        if step not in (None, model.step):
            raise Refused(409, f'The run has come to step {model.step:,}: draw again.')
        place = (row + 0.5) / size, (column + 0.5) / size
        maps = model.attention(number, label, place, seed, truncation)
    return {
        'step': model.step,
        'maps': [
            {'resolution': resolution, 'weights': weights.tolist()}
            for resolution, weights in maps.items()
        ],
    }


def _create_device(workdir: Path) -> Callable[[], AbstractContextManager[Model]]:
    """Builds `with device() as model`, which gives the device to one thread at a time.

    The model is that of the newest checkpoint, which is read at the first request and again once
    there is a newer one.
    """
    load = create_loader(workdir)
    turn, places = threading.Lock(), threading.BoundedSemaphore(_MOST_WAITING)
    model, tried = None, None

    def newest():
        nonlocal model, tried
        step = max(RunFolder(workdir).checkpoint_steps(), default=None)
        if step is None and model is None:
            raise Refused(503, 'There is no checkpoint to draw from yet: try again later.')
        if step is not None and (model is None or step != tried):
            tried = step
            try:
                (model,) = load(step)
            except UserError as error:  # just removed, or damaged: keep the last one
                if model is None:
                    raise Refused(503, str(error)) from error
        return model

    @contextmanager
    def device():
        if not places.acquire(blocking=False):
            raise Refused(503, 'Too many are waiting for the device: try again in a minute.')
        try:
            if not turn.acquire(timeout=_LONGEST_WAIT):
                raise Refused(503, 'The device was busy for a minute: try again.')
            try:
                yield newest()
            finally:
                turn.release()
        finally:
            places.release()

    return device


# ---- What is asked. ----------------------------------------------------------------------------


def _asked(query: str, keys: Sequence[str]) -> dict[str, str]:
    """The values in a query, without those that are empty; raises UserError."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors='strict', max_num_fields=20)
    except ValueError as error:
        raise UserError('This query cannot be read: ask as the page /draw does.') from error
    names = [name for name, _ in pairs]
    for name, value in pairs:
        if name not in keys or names.count(name) > 1 or len(value) > _LONGEST_VALUE:
            raise UserError(
                f'{name[:_LONGEST_VALUE]!r} is not accepted: give each of {", ".join(keys)} at '
                f'most once, in {_LONGEST_VALUE} characters.'
            )
    return {name: value for name, value in pairs if value}


def _classes(asked: dict[str, str]) -> list[str]:
    return [asked['class']] if 'class' in asked else []


def _randomness(asked: dict[str, str]) -> tuple[int, float | None]:
    """The seed, and the truncation if one is asked for; raises UserError."""
    seed, text = _whole(asked, 'seed', 0, 0, GREATEST_SEED), asked.get('truncation')
    try:
        truncation = None if text is None else float(text)
    except ValueError as error:
        raise UserError(
            f'truncation={text!r} is not a number: take one above 0 and up to 5, or none.'
        ) from error
    randomness(seed, truncation)
    return seed, truncation


def _whole(asked: dict[str, str], key: str, default: int | None, low: int, high: int):
    """A whole number within its range; raises UserError."""
    if key not in asked:
        return default
    text = asked[key]
    if not (re.fullmatch('[0-9]{1,10}', text) and low <= int(text) <= high):
        raise UserError(
            f'{key}={text!r} is not possible: take a whole number from {low} to {high}.'
        )
    return int(text)

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

MAX_IMAGES = 64
MAX_SEED = 2**32 - 1

_PART = 16  # images drawn at a time; between parts, another request may take its turn
_MAX_WAITING = 256  # requests for the device
_MAX_WAIT = 60  # seconds that a request waits
_MAX_LENGTH = 200  # characters of a value


class Refused(Exception):
    """A refused request; the arguments are the HTTP status and a sentence."""


class _Run(NamedTuple):
    """A run with its newest model; see `_create_device`."""

    config: ml_collections.ConfigDict
    class_names: Sequence[str]
    device: Callable[[], AbstractContextManager[Model]]


def create_drawings(workdir: Path) -> dict[str, Callable[[str], dict[str, Any]]]:
    """Builds the functions that answer the queries 'samples' and 'attention'.

    Any number of threads may call them. Both raise UserError at once for an invalid query, and
    `Refused` when the device or a checkpoint is unavailable.

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
    """Images 0 … n - 1 of a seed as data URIs, with their classes; see `Model.sample`."""
    asked = _asked(query, ('class', 'seed', 'truncation', 'n'))
    n = _integer(asked, 'n', 16, 1, MAX_IMAGES)
    labels = labels_of(run.config, run.class_names, _classes(asked), n)
    seed, truncation = _randomness(asked)
    model: Model | None = None
    images: list[np.ndarray] = []
    for start in range(0, n, _PART):
        # Every part has `_PART` images, so that one compiled program draws all.
        indices, some = np.arange(start, start + _PART), np.resize(labels[start:], _PART)
        with run.device() as newest:
            model = model or newest
            for batch in model.stream(indices, some, seed, truncation):
                images.extend(batch)
    assert model is not None  # n is at least 1
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
    """The attention maps of a pixel of a sample, layer by layer; see `Model.attention`."""
    keys = ('class', 'seed', 'truncation', 'step', 'number', 'row', 'column')
    asked, size = _asked(query, keys), run.config.dataset.image_size
    number = _integer(asked, 'number', 0, 0, MAX_IMAGES - 1)
    row, column = (_integer(asked, key, 0, 0, size - 1) for key in ('row', 'column'))
    step = _integer(asked, 'step', 0, 0, 10**10 - 1) if 'step' in asked else None
    label = labels_of(run.config, run.class_names, _classes(asked), number + 1)[number]
    seed, truncation = _randomness(asked)
    with run.device() as model:
        if step not in (None, model.step):
            raise Refused(409, f'The run has reached step {model.step:,}: draw again.')
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

    The first request reads the model from the newest checkpoint; a later request reads it again if
    there is a newer checkpoint.
    """
    load = create_loader(workdir)
    turn, places = threading.Lock(), threading.BoundedSemaphore(_MAX_WAITING)
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
            except UserError as error:  # just removed, or damaged: keep the last model
                if model is None:
                    raise Refused(503, str(error)) from error
        return model

    @contextmanager
    def device():
        if not places.acquire(blocking=False):
            raise Refused(503, 'Too many requests wait for the device: try again in a minute.')
        try:
            if not turn.acquire(timeout=_MAX_WAIT):
                raise Refused(503, 'The device was busy for a minute: try again.')
            try:
                yield newest()
            finally:
                turn.release()
        finally:
            places.release()

    return device


# ---- Queries. ----------------------------------------------------------------------------------


def _asked(query: str, keys: Sequence[str]) -> dict[str, str]:
    """The values of a query that are not empty; raises UserError."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors='strict', max_num_fields=20)
    except ValueError as error:
        raise UserError('This query cannot be read: use the page /draw.') from error
    names = [name for name, _ in pairs]
    for name, value in pairs:
        if name not in keys or names.count(name) > 1 or len(value) > _MAX_LENGTH:
            raise UserError(
                f'{name[:_MAX_LENGTH]!r} is not accepted: give each of {", ".join(keys)} at '
                f'most once, with at most {_MAX_LENGTH} characters.'
            )
    return {name: value for name, value in pairs if value}


def _classes(asked: dict[str, str]) -> list[str]:
    return [asked['class']] if 'class' in asked else []


def _randomness(asked: dict[str, str]) -> tuple[int, float | None]:
    """The seed, and the truncation or None; raises UserError."""
    seed, text = _integer(asked, 'seed', 0, 0, MAX_SEED), asked.get('truncation')
    try:
        truncation = None if text is None else float(text)
    except ValueError as error:
        raise UserError(
            f'truncation={text!r} is not a number: give one above 0 and at most 5, or none.'
        ) from error
    randomness(seed, truncation)
    return seed, truncation


def _integer(asked: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    """An integer from `low` to `high`; raises UserError."""
    if key not in asked:
        return default
    text = asked[key]
    if not (re.fullmatch('[0-9]{1,10}', text) and low <= int(text) <= high):
        raise UserError(f'{key}={text!r} should be an integer from {low} to {high}.')
    return int(text)

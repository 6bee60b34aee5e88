"""The drawings of the page /draw: samples, and what a pixel attends to."""

import contextlib
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
_POLL = 0.5  # seconds between two looks at whether a waiting client has left
_ID = 16  # digits of a model's SHA-256, by which its drawings are told apart
_MAX_LENGTH = 200  # characters of a value


class Refused(Exception):
    """A refused request; the arguments are the HTTP status and a sentence."""


class ClientLeft(ConnectionError):
    """The client closed its connection while its request waited for the device."""


HasLeft = Callable[[], bool]
Draw = Callable[[str, HasLeft], dict[str, Any]]


class _Run(NamedTuple):
    """A run with its newest model; see `_create_device`."""

    config: ml_collections.ConfigDict
    class_names: Sequence[str]
    device: Callable[[HasLeft], AbstractContextManager[Model]]


def create_drawings(workdir: Path) -> dict[str, Draw]:
    """Builds `draw(query, has_left)` for the queries 'samples' and 'attention'.

    Any number of threads may call them. Both raise UserError at once for an invalid query,
    `Refused` when the device or a checkpoint is unavailable, and `ClientLeft` when `has_left()` is
    true before the drawing starts.

    Raises:
      UserError: when there is no run.
    """
    folder = RunFolder(workdir)
    run = _Run(folder.config(), folder.class_names(), _create_device(workdir))
    return {
        'samples': functools.partial(_samples, run),
        'attention': functools.partial(_attention, run),
    }


def _samples(run: _Run, query: str, has_left: HasLeft) -> dict[str, Any]:
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
        with run.device(has_left) as newest:
            model = model or newest
            for batch in model.stream(indices, some, seed, truncation):
                images.extend(batch)
    assert model is not None  # n is at least 1
    conditional = run.config.model.conditioning != 'none'
    return {
        'step': model.step,
        'model': model.sha256[:_ID],
        'images': [
            {
                'source': page.data_uri(image, lossless=True),
                'class': run.class_names[label] if conditional else '',
            }
            for image, label in zip(images, labels, strict=False)  # the last part has more
        ],
    }


def _attention(run: _Run, query: str, has_left: HasLeft) -> dict[str, Any]:
    """The attention maps of a pixel of a sample, layer by layer; see `Model.attention`."""
    keys = ('class', 'seed', 'truncation', 'step', 'model', 'number', 'row', 'column')
    asked, size = _asked(query, keys), run.config.dataset.image_size
    number = _integer(asked, 'number', 0, 0, MAX_IMAGES - 1)
    row, column = (_integer(asked, key, 0, 0, size - 1) for key in ('row', 'column'))
    step = _integer(asked, 'step', 0, 0, 10**10 - 1) if 'step' in asked else None
    label = labels_of(run.config, run.class_names, _classes(asked), number + 1)[number]
    seed, truncation = _randomness(asked)
    with run.device(has_left) as model:
        if step not in (None, model.step):
            raise Refused(409, f'The run has reached step {model.step:,}: draw again.')
        if asked.get('model', model.sha256[:_ID]) != model.sha256[:_ID]:
            raise Refused(409, f'Step {model.step:,} is of another run now: draw again.')
        place = (row + 0.5) / size, (column + 0.5) / size
        maps = model.attention(number, label, place, seed, truncation)
    return {
        'step': model.step,
        'model': model.sha256[:_ID],
        'maps': [
            {'resolution': resolution, 'weights': weights.tolist()}
            for resolution, weights in maps.items()
        ],
    }


def _create_device(workdir: Path) -> Callable[[HasLeft], AbstractContextManager[Model]]:
    """Builds `with device(has_left) as model`, which gives the device to one thread at a time.

    The first request reads the model from the newest checkpoint; a later request reads it again if
    the checkpoints have changed.
    """
    load, folder = create_loader(workdir), RunFolder(workdir).checkpoints
    turn, places = threading.Lock(), threading.BoundedSemaphore(_MAX_WAITING)
    model: Model | None = None
    read: object = None

    def newest() -> Model:
        nonlocal model, read
        present = _state_of(folder)
        if model is None or present != read:
            read = present
            try:
                (model,) = load('newest')
            except UserError as error:  # just removed, or damaged: keep the last model
                if model is None:
                    raise Refused(503, str(error)) from error
        return model

    @contextmanager
    def device(has_left: HasLeft) -> Iterator[Model]:
        if not places.acquire(blocking=False):
            raise Refused(503, 'Too many requests wait for the device: try again in a minute.')
        try:
            deadline = time.monotonic() + _MAX_WAIT
            while not turn.acquire(timeout=min(_POLL, _MAX_WAIT)):
                if has_left():
                    raise ClientLeft
                if time.monotonic() > deadline:
                    raise Refused(503, 'The device was busy for a minute: try again.')
            try:
                if has_left():
                    raise ClientLeft
                yield newest()
            finally:
                turn.release()
        finally:
            places.release()

    return device


def _state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Which files a folder of checkpoints holds, without those that are being written."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith('.orbax-checkpoint-tmp')]
        for path in (os.path.join(parent, name) for name in (*folders, *files)):
            with contextlib.suppress(OSError):  # just removed
                stat = os.stat(path)
                found[path] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return found


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

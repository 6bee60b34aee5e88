"""Self-contained HTML pages: their templates, and images as data URIs."""

import base64
import functools
import hashlib
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from sagan_jax.errors import UserError
from sagan_jax.images import UnreadableImage, read
from sagan_jax.system.files import atomic_path
from sagan_jax.system.untrusted import reason, warn_once

IMAGE_WIDTH = 664  # a grid with ten columns of 64×64

_TEMPLATES = resources.files('sagan_jax.viewing') / 'templates'


class Figure(NamedTuple):
    """An image with its caption; `source` is a data URI."""

    caption: str
    source: str


# ---- Templates. --------------------------------------------------------------------------------


def render(template: str, **values: Any) -> str:
    """Renders a file of templates/ with all values escaped.

    Raises:
      jinja2.UndefinedError: when the template uses a value that was not given.
    """
    return engine().get_template(template).render(values)


@functools.cache
def engine() -> jinja2.Environment:
    """The Jinja environment of all pages.

    It adds the function `source(*names)`, the text of style sheets or scripts in templates/, and
    three filters: `sha256` hashes a text for a content security policy; `thousands` and `short`
    format numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('sagan_jax.viewing'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.globals['source'] = _source
    environment.filters |= {
        'sha256': _sha256,
        'thousands': '{:,}'.format,
        'short': '{:g}'.format,
    }
    return environment


@functools.cache
def _source(*names: str) -> str:
    return '\n'.join((_TEMPLATES / name).read_text(encoding='utf-8') for name in names)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write(path: Path, text: str) -> None:
    """Writes a report.

    Raises:
      UserError: when it cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'The report {path} cannot be written ({reason(error)}): free disk space, and remove '
            'what is in its place.'
        ) from error


# ---- Images. -----------------------------------------------------------------------------------


def figures(captions: Mapping[Path, str]) -> list[Figure]:
    """Image files with their captions, reduced to `IMAGE_WIDTH` if they are wider.

    Leaves out files that do not exist and, with a warning, those that cannot be read.
    """
    found = []
    for path, caption in captions.items():
        if path.is_symlink() or path.exists():
            try:
                found.append(Figure(caption, _small(path, path.lstat().st_mtime_ns)))
            except UserError as error:
                warn_once(str(error))
    return found


def data_uri(image: Image.Image | np.ndarray, lossless: bool = False) -> str:
    """An image, RGB or uint8 [H, W, 3], as WebP in a data URI; lossy takes a quarter of PNG."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format='WEBP', quality=85, method=2, lossless=lossless)
    return f'data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'


@functools.lru_cache(64)  # a run rewrites its page often, and few images are new
def _small(path: Path, changed: int) -> str:
    image = Image.fromarray(read(path))
    if image.width > IMAGE_WIDTH:
        height = max(1, round(image.height * IMAGE_WIDTH / image.width))
        image = image.resize((IMAGE_WIDTH, height), Image.Resampling.LANCZOS)
    try:
        return data_uri(image)
    except ValueError as error:  # too high for WebP
        raise UnreadableImage(path, reason(error)) from error

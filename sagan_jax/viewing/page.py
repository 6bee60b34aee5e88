"""HTML pages that need no other file: their frame, with style and script, and pictures in them."""

import base64
import functools
import hashlib
import io
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE_WIDTH = 664  # a grid of ten pictures as 64×64

_FILES = resources.files('sagan_jax.viewing') / 'templates'


def document(title: str, body: str, script: str = '', served: bool = False) -> str:
    """A whole page, whose policy forbids browsers to load or run anything that is not in it.

    Args:
      title: as text.
      body: as HTML.
      script: a file of templates/ that runs after page.js.
      served: whether the scripts may ask the server that the page came from.
    """
    style = _read('style.css')
    code = '\n'.join(_read(name) for name in ('page.js', script) if name)
    connect = "'self'" if served else "'none'"
    policy = (
        f"default-src 'none'; connect-src {connect}; img-src data:; "
        f"style-src {_source(style)}; script-src {_source(code)}; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f'<style>{style}</style>\n</head>\n'
        f'<body>\n{body}\n<script>{code}</script>\n</body>\n</html>\n'
    )


def figure(path: Path, caption: str) -> str:
    """A picture file with its caption, made smaller if it is large."""
    return (
        f'<figure><img alt="{escape(caption)}" src="{picture(path)}">'
        f'<figcaption>{escape(caption)}</figcaption></figure>'
    )


def picture(path: Path) -> str:
    """A picture file as a data URI, made smaller if it is large."""
    return _picture(path, path.stat().st_mtime_ns)


def data_uri(image: Image.Image | np.ndarray, lossless: bool = False) -> str:
    """A picture, RGB or uint8 [H, W, 3], as a data URI; lossy WebP is a quarter of PNG."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format='WEBP', quality=85, method=2, lossless=lossless)
    return f'data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'


@functools.lru_cache(64)  # a run writes its page again and again, with few new pictures
def _picture(path: Path, changed: int) -> str:
    with Image.open(path) as image:
        image = image.convert('RGB')
    if image.width > PICTURE_WIDTH:
        height = round(image.height * PICTURE_WIDTH / image.width)
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    return data_uri(image)


@functools.cache
def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding='utf-8')


def _source(text: str) -> str:
    """What a policy allows by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

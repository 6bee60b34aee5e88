"""A page of text, tables and pictures, as Markdown and as one HTML file that needs no other."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from PIL import Image

PICTURE_WIDTH = 664  # a grid of ten pictures as 64×64

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #6a6f76; --line: #d9dce1;
  --head: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --faint: #9aa0a8; --line: #363a40; --head: #202327; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, li { max-width: 46rem; }
code { font-size: .9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { background: var(--head); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
th:first-child { background: var(--head); }
em { color: var(--faint); } td em { white-space: normal; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem),
  1fr)); }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%,
  20rem), 1fr)); }
figure { margin: 0; } figcaption { color: var(--faint); font-size: .85rem; }
img, svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--faint); font-size: 12px; } svg .title { fill: var(--ink); font-weight: 600;
  font-size: 14px; }
svg .grid { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 1rem; padding: 0;
  list-style: none; font-size: .9rem; }
.legend svg { display: inline-block; width: 1.8rem; height: .7rem; margin-right: .4rem; }
"""


class Table(NamedTuple):
    """Rows of Markdown text; the first column is the name of the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Html(NamedTuple):
    """What only the HTML page shows."""

    text: str


Part = str | Table | Html  # a string is a paragraph of Markdown, a heading or a list


def markdown(parts: Sequence[Part]) -> str:
    """The parts as Markdown, without those that only HTML can show."""
    texts = []
    for part in parts:
        if isinstance(part, Table):
            rows = [part.header, ['---'] + ['---:'] * (len(part.header) - 1), *part.rows]
            texts.append('\n'.join(f'| {" | ".join(row)} |' for row in rows))
        elif isinstance(part, str):
            texts.append(part)
    return '\n\n'.join(texts) + '\n'


def html(title: str, parts: Sequence[Part]) -> str:
    """The parts as an HTML page."""
    body = '\n'.join(_html_of(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n'
    )


def picture(path: Path, caption: str) -> str:
    """A figure of a picture file, made smaller if it is large and put into the page."""
    with Image.open(path) as image:
        image = image.convert('RGB')
    if image.width > PICTURE_WIDTH:
        height = round(image.height * PICTURE_WIDTH / image.width)
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format='PNG', optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f'<figcaption>{escape(caption)}</figcaption></figure>'
    )


def _html_of(part: Part) -> str:
    if isinstance(part, Html):
        return part.text
    if isinstance(part, Table):
        rows = ''.join(_row('td', row) for row in part.rows)
        return f'<div class="wide"><table>{_row("th", part.header)}{rows}</table></div>'
    for mark, tag in (('## ', 'h2'), ('# ', 'h1')):
        if part.startswith(mark):
            return f'<{tag}>{_inline(part.removeprefix(mark))}</{tag}>'
    if part.startswith('- '):
        items = part.removeprefix('- ').split('\n- ')
        return '<ul>' + ''.join(f'<li>{_inline(item)}</li>' for item in items) + '</ul>'
    return f'<p>{_inline(part)}</p>'


def _row(tag: str, cells: Sequence[str]) -> str:
    texts = [_inline(cell) for cell in cells]
    if tag == 'th':
        texts = [text.replace('_', '_<wbr>') for text in texts]  # long names on several lines
    return '<tr>' + ''.join(f'<{tag}>{text}</{tag}>' for text in texts) + '</tr>'


def _inline(text: str) -> str:
    text = re.sub(r'`([^`]+)`', r'<code>\1</code>', escape(text, quote=False))
    return re.sub(r'(?<!\w)\*([^*]+)\*(?!\w)', r'<em>\1</em>', text)

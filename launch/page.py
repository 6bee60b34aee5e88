"""A page of text, tables and pictures, as Markdown and as one HTML file that needs no other."""

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from sagan_jax.viewing.page import document


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
    return document(title, '\n'.join(_html_of(part) for part in parts))


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

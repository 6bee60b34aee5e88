"""What a run's server answers, whoever asks: the report, the page /draw and its drawings."""

import hashlib
import ipaddress
import json
import re
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sagan_jax.errors import UserError
from sagan_jax.run.folder import RunFolder
from sagan_jax.viewing import page, report, requests
from sagan_jax.viewing.requests import Refused

_REPORT_SECONDS = 3  # for which a report is fresh


class Answer(NamedTuple):
    """An answer to a request; `kind` is its Content-Type."""

    status: int
    kind: str
    body: bytes
    etag: str = ''


def create_answers(workdir: Path, local: bool) -> Callable[[str, str], Answer]:
    """Builds `answer(host, target) -> Answer`, of a header Host and a path with its query.

    Any number of threads may call it.

    Args:
      workdir: the run's folder.
      local: whether to refuse requests under other names than this machine's own, which a foreign
        page may have pointed at it.

    Raises:
      UserError: when there is no run.
    """
    run = RunFolder(workdir)
    config, class_names = run.config(), run.class_names()
    draw_page = _html(
        page.render(
            'draw.html',
            name=workdir.resolve().name,
            class_names=() if config.model.conditioning == 'none' else class_names,
            most_images=requests.MOST_IMAGES,
            greatest_seed=requests.GREATEST_SEED,
        )
    )
    answers = {'/': _create_report(workdir), '/draw': lambda query: draw_page}
    for name, draw in requests.create_drawings(workdir).items():
        answers[f'/{name}'] = lambda query, draw=draw: _json(draw(query))

    def answer(host, target):
        try:
            if local and not is_loopback(_name(host)):
                raise Refused(403, 'This server answers only under the name localhost.')
            path, _, query = target.partition('?')
            if path not in answers:
                raise Refused(404, 'There is no such page: take / or /draw.')
            return answers[path](query)
        except Refused as refused:
            return sentence(*refused.args)
        except UserError as error:
            return sentence(400, str(error))
        except Exception:
            traceback.print_exc()
            return sentence(500, 'The server failed: its terminal shows the error.')

    return answer


def _create_report(workdir: Path) -> Callable[[str], Answer]:
    """Builds an answer with the report, which is made again once it is a few seconds old."""
    one_at_a_time, made, when = threading.Lock(), None, 0.0

    def answer(query):
        nonlocal made, when
        with one_at_a_time:
            if made is None or time.monotonic() > when + _REPORT_SECONDS:
                try:
                    text = report.html(workdir, served=True)
                except UserError as error:
                    raise Refused(503, str(error)) from error
                made = _html(text, f'"{hashlib.sha256(text.encode()).hexdigest()}"')
                when = time.monotonic()
            return made

    return answer


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, out of reach for others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def _name(host: str) -> str:
    """The name in a header Host, without its port."""
    found = re.fullmatch(r'\[([^]]*)\](?::\d+)?|([^:]*)(?::\d+)?', host)
    return (found[1] or found[2]) if found else ''


def _html(text: str, etag: str = '') -> Answer:
    return Answer(200, 'text/html; charset=utf-8', text.encode(), etag)


def _json(value: Any) -> Answer:
    return Answer(200, 'application/json', json.dumps(value).encode())


def sentence(status: int, text: str) -> Answer:
    """An answer in a sentence of plain text."""
    return Answer(status, 'text/plain; charset=utf-8', text.encode())

"""The answers of a run's server: the report, the page /draw and its drawings."""

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

_REPORT_SECONDS = 3  # after which a report is built again


class Answer(NamedTuple):
    """An answer to a request; `kind` is its Content-Type."""

    status: int
    kind: str
    body: bytes
    etag: str = ''


def create_answers(workdir: Path, local: bool) -> Callable[[str, str], Answer]:
    """Builds `answer(host, target) -> Answer`; `host` is the header Host, `target` path and query.

    Any number of threads may call it.

    Args:
      workdir: the run's folder.
      local: whether to refuse hosts other than this machine's own names. Another web page can
        point its own name at this server.

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
            max_images=requests.MAX_IMAGES,
            max_seed=requests.MAX_SEED,
        )
    )
    answers = {'/': _create_report(workdir), '/draw': lambda query: draw_page}
    for name, draw in requests.create_drawings(workdir).items():
        answers[f'/{name}'] = _in_json(draw)

    def answer(host: str, target: str) -> Answer:
        try:
            if local and not is_loopback(_name(host)):
                raise Refused(403, 'This server answers at localhost only: open that address.')
            path, _, query = target.partition('?')
            if path not in answers:
                raise Refused(404, 'There is no such page: open / or /draw.')
            return answers[path](query)
        except Refused as refused:
            return sentence(*refused.args)
        except UserError as error:
            return sentence(400, str(error))
        except Exception:
            traceback.print_exc()
            return sentence(500, 'The server failed: see the error in its terminal.')

    return answer


def _create_report(workdir: Path) -> Callable[[str], Answer]:
    """Builds the answer with the report, which is built again when it is a few seconds old."""
    lock = threading.Lock()
    built: Answer | None = None
    built_at = 0.0

    def answer(query: str) -> Answer:
        nonlocal built, built_at
        with lock:
            if built is None or time.monotonic() > built_at + _REPORT_SECONDS:
                try:
                    text = report.html(workdir, served=True)
                except UserError as error:
                    raise Refused(503, str(error)) from error
                built = _html(text, f'"{hashlib.sha256(text.encode()).hexdigest()}"')
                built_at = time.monotonic()
            return built

    return answer


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a name or address."""
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


def _in_json(draw: Callable[[str], dict[str, Any]]) -> Callable[[str], Answer]:
    return lambda query: Answer(200, 'application/json', json.dumps(draw(query)).encode())


def sentence(status: int, text: str) -> Answer:
    """An answer of one sentence in plain text."""
    return Answer(status, 'text/plain; charset=utf-8', text.encode())

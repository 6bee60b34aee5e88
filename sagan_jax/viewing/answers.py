"""The answers of a run's server: the report, the page /draw and its drawings."""

import hashlib
import ipaddress
import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from sagan_jax.errors import UserError
from sagan_jax.run.folder import RunFolder
from sagan_jax.system.untrusted import open_file
from sagan_jax.viewing import page, report, requests
from sagan_jax.viewing.requests import ClientLeft, Refused

_MAX_CONFIG = 2**26  # bytes of config.json
_REPORT_SECONDS = 3  # after which a report is built again


class Answer(NamedTuple):
    """An answer to a request; `kind` is its Content-Type."""

    status: int
    kind: str
    body: bytes
    etag: str = ''


class Request(NamedTuple):
    """A request.

    Attributes:
      target: path and query.
      host: the header Host, the name by which the client knows this server.
      origin: the header Origin, the page that asks; browsers leave it out for pages of this server.
      site: the header Sec-Fetch-Site, by which browsers say how that page is related.
      has_left: whether the client no longer waits for the answer.
    """

    target: str
    host: str = 'localhost'
    origin: str = ''
    site: str = ''
    has_left: Callable[[], bool] = lambda: False


def create_answers(workdir: Path, names: Collection[str] = ()) -> Callable[[Request], Answer]:
    """Builds `answer(request) -> Answer`. Any number of threads may call it.

    A request is refused if its Host is not localhost, an IP address or one of `names`: another web
    page can point its own name at this server. A request for a drawing is refused if another page
    makes it.

    Args:
      workdir: the run's folder.
      names: this machine's own names.

    Raises:
      UserError: when there is no run. `answer` raises `ClientLeft` when nobody waits for it.
    """
    own = {name.lower() for name in (*names, 'localhost')}
    report, current = _create_report(workdir), _create_pages(workdir)
    current()

    def answer(request: Request) -> Answer:
        try:
            name = _name(request.host).lower().removesuffix('.')
            if name not in own and not _is_address(name):
                raise Refused(
                    403,
                    'This server answers only at localhost, at IP addresses and at the names of '
                    'its machine: open one of these.',
                )
            path, _, query = request.target.partition('?')
            if path == '/':
                return report(query)
            pages, drawings = current()
            if path in pages:
                return pages[path]
            if path not in drawings:
                raise Refused(404, 'There is no such page: open / or /draw.')
            if _is_foreign(request):
                raise Refused(403, 'Another page must not draw here: open /draw.')
            drawn = drawings[path](query, request.has_left)
            return Answer(200, 'application/json', json.dumps(drawn).encode())
        except Refused as refused:
            return sentence(*refused.args)
        except UserError as error:
            return sentence(400, str(error))
        except ClientLeft:
            raise
        except Exception:
            traceback.print_exc()
            return sentence(500, 'The server failed: see the error in its terminal.')

    return answer


def _create_pages(
    workdir: Path,
) -> Callable[[], tuple[dict[str, Answer], dict[str, requests.Draw]]]:
    """Builds a function with the pages and drawings by path, which are those of `config.json`."""
    run, lock = RunFolder(workdir), threading.Lock()
    of: bytes | None = None
    found: tuple[dict[str, Answer], dict[str, requests.Draw]] = {}, {}

    def current() -> tuple[dict[str, Answer], dict[str, requests.Draw]]:
        nonlocal of, found
        with lock:
            written = _content(run.config_json)
            if written != of:
                config, class_names = run.config(), run.class_names()
                text = page.render(
                    'draw.html',
                    name=workdir.resolve().name,
                    class_names=() if config.model.conditioning == 'none' else class_names,
                    max_images=requests.MAX_IMAGES,
                    max_seed=requests.MAX_SEED,
                )
                drawings = requests.create_drawings(workdir)
                found = {'/draw': _html(text)}, {f'/{k}': draw for k, draw in drawings.items()}
                of = written
            return found

    return current


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


def _content(path: Path) -> bytes:
    """The content of a file as far as it matters; empty if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(_MAX_CONFIG)
    except OSError:
        return b''


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_foreign(request: Request) -> bool:
    """Whether a page that this server did not send makes the request."""
    origin = request.origin.partition('://')[2].lower()
    return request.site not in ('', 'same-origin', 'none') or (
        request.origin != '' and origin != request.host.lower()
    )


def _name(host: str) -> str:
    """The name in a header Host, without its port."""
    found = re.fullmatch(r'\[([^]]*)\](?::\d+)?|([^:]*)(?::\d+)?', host)
    return (found[1] or found[2]) if found else ''


def _html(text: str, etag: str = '') -> Answer:
    return Answer(200, 'text/html; charset=utf-8', text.encode(), etag)


def sentence(status: int, text: str) -> Answer:
    """An answer of one sentence in plain text."""
    return Answer(status, 'text/plain; charset=utf-8', text.encode())

"""A run in the browser, finished or under way: `--mode serve`."""

import hashlib
import ipaddress
import json
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.viewing import page, report, requests
from sagan_jax.viewing.requests import Refused

_REPORT_SECONDS = 3  # for which a report is fresh

# The pages' own policies allow, of styles and scripts, no others than theirs.
_HEADERS = {
    'Content-Security-Policy': "default-src 'none'; connect-src 'self'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-cache',
}


class Answer(NamedTuple):
    """What a request is answered."""

    status: int
    kind: str  # of the body, as HTTP says it
    body: bytes
    etag: str = ''


# ---- The server. -------------------------------------------------------------------------------


def serve(workdir: Path, host: str, port: int) -> None:
    """Serves a run until Ctrl-C or SIGTERM; arguments and mistakes are `create_server`'s."""
    with create_server(workdir, host, port) as server:
        address = f'[{host}]' if ':' in host else host
        print(f'serving        {workdir} at http://{address}:{server.server_address[1]}/')
        for number in (signal.SIGINT, signal.SIGTERM):  # one started in the background ignores it
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f'\nended          {workdir} is served no longer')


def create_server(workdir: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of a run's pages, which listens and answers within its `serve_forever`.

    Args:
      workdir: the run's folder.
      host: a name or an address of this machine; nobody else can reach 127.0.0.1.
      port: 0 for any that is free.

    Raises:
      UserError: when there is no such run, or it cannot listen there.
    """
    answer = create_answers(workdir, local=_is_loopback(host))

    class Handler(BaseHTTPRequestHandler):
        protocol_version, timeout = 'HTTP/1.1', 30  # seconds for which a connection may be silent
        server_version, sys_version = 'sagan_jax', ''

        def do_GET(self):
            if 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers:
                self.close_connection = True  # a body would be taken for the next request
            found = answer(self.headers.get('Host', ''), self.path)
            if found.etag and self.headers.get('If-None-Match') == found.etag:
                found = found._replace(status=304, body=b'')
            self._send(found)

        def send_error(self, code, message=None, explain=None):
            self.close_connection = True
            self._send(_sentence(code, f'{message or "This request cannot be read"}.'))

        def log_message(self, *_):
            """Says nothing of requests."""

        def _send(self, found):
            headers = _HEADERS | {'Content-Type': found.kind, 'Content-Length': len(found.body)}
            headers |= {'ETag': found.etag} if found.etag else {}
            headers |= {'Retry-After': 5} if found.status == 503 else {}
            headers |= {'Connection': 'close'} if self.close_connection else {}
            self.send_response(found.status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(found.body)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        request_queue_size = 256

        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), OSError):  # of one who has left
                super().handle_error(request, client_address)

    try:
        return Server((host, port), Handler)
    except OSError as error:
        raise UserError(
            f'Port {port} of {host} cannot be had ({error.strerror}): choose another --port or '
            '--host.'
        ) from error


def create_answers(workdir: Path, local: bool) -> Callable[[str, str], Answer]:
    """Builds `answer(host, target) -> Answer`, of a header Host and a path with its query.

    Any number of threads may call it. With `local` it answers to names of this machine alone: to
    others a foreign page might have given its address. Raises UserError when there is no run.
    """
    config, class_names = provenance.read(workdir)
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
            if local and not _is_loopback(_name(host)):
                raise Refused(403, 'This server answers to the name localhost alone.')
            path, _, query = target.partition('?')
            if path not in answers:
                raise Refused(404, 'There is no such page: / and /draw are there.')
            return answers[path](query)
        except Refused as refused:
            return _sentence(*refused.args)
        except UserError as error:
            return _sentence(400, str(error))
        except Exception:
            traceback.print_exc()
            return _sentence(500, 'Something went wrong: the terminal of the server says what.')

    return answer


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def _name(host: str) -> str:
    """The name in a header Host, which may say a port too."""
    found = re.fullmatch(r'\[([^]]*)\](?::\d+)?|([^:]*)(?::\d+)?', host)
    return (found[1] or found[2]) if found else ''


def _html(text: str, etag: str = '') -> Answer:
    return Answer(200, 'text/html; charset=utf-8', text.encode(), etag)


def _json(value: Any) -> Answer:
    return Answer(200, 'application/json', json.dumps(value).encode())


def _sentence(status: int, sentence: str) -> Answer:
    return Answer(status, 'text/plain; charset=utf-8', sentence.encode())


def _create_report(workdir: Path) -> Callable[[str], Answer]:
    """Builds an answer with the run's report, made anew where it is older than a few seconds."""
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

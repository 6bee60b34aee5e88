"""Serves a run's pages to browsers, during and after training: `--mode serve`."""

import signal
import socket
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sagan_jax.errors import UserError
from sagan_jax.viewing import answers
from sagan_jax.viewing.answers import Answer

# Each page has a stricter policy for styles and scripts, with the hashes of its own.
_HEADERS = {
    'Content-Security-Policy': "default-src 'none'; connect-src 'self'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-cache',
}


def serve(workdir: Path, host: str, port: int) -> None:
    """Serves a run until Ctrl-C or SIGTERM; arguments and errors are those of `create_server`."""
    with create_server(workdir, host, port) as server:
        address = f'[{host}]' if ':' in host else host
        print(f'serving        {workdir} at http://{address}:{server.server_address[1]}/')
        for number in (signal.SIGINT, signal.SIGTERM):  # a background process ignores SIGINT
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f'\nended          serving {workdir}')


def create_server(workdir: Path, host: str, port: int) -> ThreadingHTTPServer:
    """Creates a server of a run's pages, which answers while its `serve_forever` runs.

    Args:
      workdir: the run's folder.
      host: a name or an address of this machine; only this machine reaches 127.0.0.1.
      port: 0 for any free one.

    Raises:
      UserError: when there is no run, or the port is unavailable.
    """
    answer = answers.create_answers(workdir, local=answers.is_loopback(host))

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        request_queue_size = 256

        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), OSError):  # the client disconnected
                super().handle_error(request, client_address)

    try:
        return Server((host, port), _create_handler(answer))
    except OSError as error:
        raise UserError(
            f'Port {port} on {host} is unavailable ({error.strerror}): choose another --port or '
            '--host.'
        ) from error


def _create_handler(answer: Callable[[str, str], Answer]) -> type[BaseHTTPRequestHandler]:
    """Builds a handler of GET requests; `answer` is from `create_answers`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version, timeout = 'HTTP/1.1', 30  # seconds until a silent connection ends
        server_version, sys_version = 'sagan_jax', ''

        def do_GET(self) -> None:
            if 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers:
                self.close_connection = True  # its body would be read as a request
            found = answer(self.headers.get('Host', ''), self.path)
            if found.etag and self.headers.get('If-None-Match') == found.etag:
                found = found._replace(status=304, body=b'')
            self._send(found)

        def send_error(
            self, code: int, message: str | None = None, explain: str | None = None
        ) -> None:
            self.close_connection = True
            self._send(answers.sentence(code, f'{message or "This request cannot be read"}.'))

        def log_message(self, format: str, *args: Any) -> None:
            """Logs nothing."""

        def _send(self, found: Answer) -> None:
            headers = _HEADERS | {'Content-Type': found.kind, 'Content-Length': len(found.body)}
            headers |= {'ETag': found.etag} if found.etag else {}
            headers |= {'Retry-After': 5} if found.status == 503 else {}
            headers |= {'Connection': 'close'} if self.close_connection else {}
            self.send_response(found.status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(found.body)

    return Handler

"""Serves a run's pages to browsers, during and after training: `--mode serve`."""

import contextlib
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

from sagan_jax.errors import UserError
from sagan_jax.system import signals
from sagan_jax.viewing import answers
from sagan_jax.viewing.answers import Answer, Request

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

_MAX_CONNECTIONS = 300  # more than may wait for the device
_HEAD_SECONDS = 10  # for which a connection may be silent or send the head of a request
_SEND_SECONDS = 60  # for which a client may receive an answer


def serve(workdir: Path, host: str, port: int) -> None:
    """Serves a run until Ctrl-C, SIGTERM or SIGHUP, and ends with status 130, 143 or 129.

    The arguments and errors are those of `create_server`.
    """

    def end(number: int, _: FrameType | None) -> None:
        # Threads may be drawing. They end here, since XLA aborts a process that unloads Python
        # under it. Writing to the descriptor is safe while another thread prints.
        with contextlib.suppress(OSError):
            os.write(1, f'\nended          serving {workdir}\n'.encode())
        os._exit(128 + number)

    with create_server(workdir, host, port) as server:
        for number in signals.requests():
            signal.signal(number, end)
        address = f'[{host}]' if ':' in host else host
        print(f'serving        {workdir} at http://{address}:{server.server_address[1]}/')
        if not answers.is_loopback(host):
            print(
                'warning        others on the network can see the run and draw from it; --host '
                '127.0.0.1 keeps them out'
            )
        sys.stdout.flush()
        server.serve_forever()


def create_server(workdir: Path, host: str, port: int) -> ThreadingHTTPServer:
    """Creates a server of a run's pages, which answers while its `serve_forever` runs.

    Args:
      workdir: the run's folder.
      host: a name or an address of this machine; only this machine reaches 127.0.0.1.
      port: 0 for any free one.

    Raises:
      UserError: when there is no run, or the port is unavailable.
    """
    names = {host}
    if not answers.is_loopback(host):
        names |= {socket.gethostname(), socket.getfqdn()}
    handler = _create_handler(answers.create_answers(workdir, names))
    try:
        return _Server(socket.AF_INET6 if ':' in host else socket.AF_INET, (host, port), handler)
    except OSError as error:
        raise UserError(
            f'Port {port} on {host} is unavailable ({error.strerror}): choose another --port or '
            '--host.'
        ) from error


class _Server(ThreadingHTTPServer):
    """A server with a bound on open connections.

    A connection over the bound closes the one whose request has been awaited for the longest time.
    """

    request_queue_size = 256

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
    ):
        self.address_family = family
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()
        self.awaited: dict[socket.socket, None] = {}  # those without a request, oldest first
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            oldest = next(iter(self.awaited), None)
            is_full = len(self.open) >= _MAX_CONNECTIONS
            if not is_full or oldest:
                self.open.add(request)
                self.awaited[request] = None
            if is_full and oldest:
                del self.awaited[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end of the stream
        if request in self.open:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def wait_for_request(self, connection: socket.socket) -> None:
        with self.lock:
            self.awaited[connection] = None

    def has_request(self, connection: socket.socket) -> None:
        with self.lock:
            self.awaited.pop(connection, None)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.open.discard(request)
            self.awaited.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client disconnected
            super().handle_error(request, client_address)


class _Head(io.RawIOBase):
    """Reads from a connection until a deadline, however slowly the bytes come."""

    def __init__(self, connection: socket.socket):
        self.connection, self.deadline = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


def _create_handler(answer: Callable[[Request], Answer]) -> type[BaseHTTPRequestHandler]:
    """Builds a handler of GET requests; `answer` is from `create_answers`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        server_version, sys_version = 'sagan_jax', ''
        server: _Server

        def setup(self) -> None:
            super().setup()
            self.rfile.close()
            self.head = _Head(self.connection)
            self.rfile = io.BufferedReader(self.head)

        def handle_one_request(self) -> None:
            self.head.deadline = time.monotonic() + _HEAD_SECONDS
            self.server.wait_for_request(self.connection)
            super().handle_one_request()

        def do_GET(self) -> None:
            self.server.has_request(self.connection)
            if 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers:
                self.close_connection = True  # its body would be read as a request
            found = answer(
                Request(
                    target=self.path,
                    host=self.headers.get('Host', ''),
                    origin=self.headers.get('Origin', ''),
                    site=self.headers.get('Sec-Fetch-Site', ''),
                    has_left=self._has_left,
                )
            )
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

        def _has_left(self) -> bool:
            """Whether the client has closed its connection."""
            self.connection.settimeout(0)
            try:
                return not self.connection.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True

        def _send(self, found: Answer) -> None:
            headers = _HEADERS | {'Content-Type': found.kind, 'Content-Length': len(found.body)}
            headers |= {'ETag': found.etag} if found.etag else {}
            headers |= {'Retry-After': 5} if found.status == 503 else {}
            headers |= {'Connection': 'close'} if self.close_connection else {}
            self.connection.settimeout(_SEND_SECONDS)
            self.send_response(found.status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(found.body)

    return Handler

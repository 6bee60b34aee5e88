"""Local servers, for tests of downloads."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def answering(respond):
    """Calls `respond(request)` for each GET. `request.answer` sends the answer.

    The server has the address `url`, which ends with a slash.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            respond(self)

        def answer(self, status, content=b'', cut=0, **headers):
            """Sends a status and the content, of which the last `cut` bytes are missing."""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), value)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - cut])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.url = f'http://127.0.0.1:{server.server_port}/'
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def serving(content):
    """Serves `content` under every name.

    The server has its address and the `requests` so far. `status` is that of its answers, and `cut`
    the bytes that they lack of what they announce.
    """

    def respond(request):
        server.requests.append(request.path)
        request.answer(server.status, server.content, server.cut)

    with answering(respond) as server:
        server.content, server.cut, server.status, server.requests = content, 0, 200, []
        yield server


@contextmanager
def in_place_of_the_hub(respond, monkeypatch):
    """Calls `respond(request)` for each GET to the Hugging Face hub, which has no token from us."""
    with answering(respond) as server:
        monkeypatch.setenv('HF_ENDPOINT', server.url)
        monkeypatch.delenv('HF_TOKEN', raising=False)
        yield server


def redirect(server, request, path):
    """Sends a request to a path of `server` under another name, as the hub does for files."""
    request.answer(302, Location=f'http://localhost:{server.server_port}/{path}')

"""A local server of one file, for tests of downloads."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def serving(content):
    """Serves `content` under every name.

    The server has the address `url`, which ends with a slash, and the `requests` so far. `status`
    is that of its answers, and `cut` the bytes that they lack of what they announce.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            self.send_response(server.status)
            self.send_header('Content-Length', str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content[: len(server.content) - server.cut])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.content, server.cut, server.status, server.requests = content, 0, 200, []
        server.url = f'http://127.0.0.1:{server.server_port}/'
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()

"""A stand-in for the Hugging Face hub, with one repository."""

import hashlib
import http.server
import json
import threading
from contextlib import contextmanager

COMMIT = 'a' * 40


def describe(files):
    """What the hub answers about a revision with these files; it has a SHA-256 of binary ones."""
    siblings = [
        {'rfilename': name, 'lfs': {'sha256': hashlib.sha256(content).hexdigest()}}
        if name.endswith('.safetensors')
        else {'rfilename': name}
        for name, content in files.items()
    ]
    return {'sha': COMMIT, 'siblings': siblings}


@contextmanager
def serving(monkeypatch):
    """Serves `hub.files` as me/shapes, at HF_ENDPOINT. Files come from another host, as there.

    `hub.requests` has the host, the path and the token of each request. `hub.token` is the one that
    opens the repository, `hub.status` that of all answers, and `hub.answer` what is said about it
    in place of `describe(hub.files)`.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            host, token = self.headers['Host'].partition(':')[0], self.headers['Authorization']
            hub.requests.append((host, self.path, token))
            if hub.status != 200 or (host == '127.0.0.1' and token != hub.token):
                return self.answer(hub.status if hub.status != 200 else 401)
            name = self.path.rpartition('/')[2]
            if self.path.startswith('/api/models/me/shapes/revision/'):
                about = describe(hub.files) if hub.answer is None else hub.answer
                return self.answer(200, json.dumps(about).encode())
            if self.path.startswith('/stored/'):
                return self.answer(200, hub.files[name])
            if not self.path.startswith(f'/me/shapes/resolve/{COMMIT}/'):
                return self.answer(404)
            self.send_response(302)
            self.send_header('Location', f'http://localhost:{hub.server_port}/stored/{name}')
            self.end_headers()

        def answer(self, status, content=b''):
            self.send_response(status)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as hub:
        hub.files, hub.requests = {}, []
        hub.status, hub.token, hub.answer = 200, None, None
        monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{hub.server_port}/')
        monkeypatch.delenv('HF_TOKEN', raising=False)
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()

"""A stand-in for the Hugging Face hub, with one repository."""

import hashlib
import json
from contextlib import contextmanager

from tests.file_server import in_place_of_the_hub, redirect

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

    def respond(request):
        host, token = request.headers['Host'].partition(':')[0], request.headers['Authorization']
        hub.requests.append((host, request.path, token))
        if hub.status != 200 or (host == '127.0.0.1' and token != hub.token):
            return request.answer(hub.status if hub.status != 200 else 401)
        name = request.path.rpartition('/')[2]
        if request.path.startswith('/api/models/me/shapes/revision/'):
            about = describe(hub.files) if hub.answer is None else hub.answer
            return request.answer(200, json.dumps(about).encode())
        if request.path.startswith('/stored/'):
            return request.answer(200, hub.files[name])
        if not request.path.startswith(f'/me/shapes/resolve/{COMMIT}/'):
            return request.answer(404)
        return redirect(hub, request, f'stored/{name}')

    with in_place_of_the_hub(respond, monkeypatch) as hub:
        hub.files, hub.requests = {}, []
        hub.status, hub.token, hub.answer = 200, None, None
        yield hub

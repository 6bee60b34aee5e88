"""A stand-in for the Hugging Face hub: repositories with files, in memory."""

import hashlib
import io
import json
import sys
import urllib.parse
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.file_server import in_place_of_the_hub, redirect


class Repository:
    """A data set: files by name at each revision, and what its card says."""

    def __init__(self, files, card=None, gated=False):
        self.revisions = {'main': files}
        self.card, self.gated = card, gated

    def commit(self, revision):
        files = self.revisions[revision]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def serving(monkeypatch):
    """Serves `hub.repositories`, each OWNER/NAME, at HF_ENDPOINT without a token.

    Files come from another host, to which the hub redirects. `hub.requests` has the host, the path
    and the token of each request.
    """

    def respond(request):
        host = request.headers['Host'].partition(':')[0]
        token = (request.headers['Authorization'] or '').removeprefix('Bearer ')
        hub.requests.append((host, request.path, token))
        path = urllib.parse.urlsplit(request.path).path.split('/')[1:]
        if path[0] == 'files':
            return request.answer(200, hub.blobs[path[1]][: -hub.cut or None])
        api = path[:2] == ['api', 'datasets']
        owner, name, _, revision, *rest = path[2:] if api else path[1:]
        repository = hub.repositories.get(f'{owner}/{name}')
        if hub.status != 200:
            return request.answer(hub.status)
        if not repository:
            return request.answer(401, X_Error_Code='RepoNotFound')
        if repository.gated and token != 'secret' and not api:
            return request.answer(401, X_Error_Code='GatedRepo')
        commits = {repository.commit(name): name for name in repository.revisions}
        revision = urllib.parse.unquote(revision)
        revision = commits.get(revision, revision)
        if revision not in repository.revisions:
            return request.answer(404, X_Error_Code='RevisionNotFound')
        files = repository.revisions[revision]
        if api:
            return request.answer(200, hub.answer or describe(repository, revision).encode())
        content = files[urllib.parse.unquote('/'.join(rest))]
        blob = hashlib.sha256(content).hexdigest()
        hub.blobs[blob] = content
        return redirect(hub, request, f'files/{blob}')

    with in_place_of_the_hub(respond, monkeypatch) as hub:
        hub.repositories, hub.requests, hub.blobs = {}, [], {}
        hub.status, hub.answer, hub.cut = 200, None, 0
        yield hub


class Without:
    """An entry of `sys.meta_path` that does not find some packages, as if not installed."""

    def __init__(self, finder, *names):
        self.finder, self.names = finder, names

    def find_spec(self, name, *args):
        hidden = name.partition('.')[0] in self.names
        return None if hidden else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def hide_tensorflow(monkeypatch):
    """Lets this process find neither TensorFlow nor PyTorch from now on."""
    found = [Without(finder, 'tensorflow', 'torch') for finder in sys.meta_path]
    monkeypatch.setattr(sys, 'meta_path', found)


def describe(repository, revision):
    """What the hub answers about a revision."""
    siblings = [
        {
            'rfilename': name,
            'size': len(content),
            'lfs': {'sha256': hashlib.sha256(content).hexdigest(), 'size': len(content)},
        }
        for name, content in repository.revisions[revision].items()
    ]
    answer = {
        'sha': repository.commit(revision),
        'gated': 'auto' if repository.gated else False,
        'siblings': [{'rfilename': 'README.md', 'size': 3, 'lfs': None}, *siblings],
    }
    return json.dumps(answer | ({'cardData': repository.card} if repository.card else {}))


def encoded(image, kind='PNG'):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def parquet(columns, class_names=None, rows_per_group=3):
    """A file as `datasets` writes it.

    Args:
      columns: values by name; those that are bytes, or None, are image files.
      class_names: by name of their column; columns that are not named have no classes.
    """
    arrays, features = {}, {}
    for name, values in columns.items():
        if any(isinstance(value, bytes) for value in values):
            rows = [{'bytes': value, 'path': f'{n}.png'} for n, value in enumerate(values)]
            arrays[name] = pa.array(rows, pa.struct({'bytes': pa.binary(), 'path': pa.string()}))
            features[name] = {'_type': 'Image'}
        elif name in (class_names or {}):
            arrays[name] = pa.array(values, pa.int64())
            features[name] = {'names': class_names[name], '_type': 'ClassLabel'}
        else:
            arrays[name] = pa.array(values)
            features[name] = {'dtype': str(arrays[name].type), '_type': 'Value'}
    metadata = {'huggingface': json.dumps({'info': {'features': features}})}
    buffer = io.BytesIO()
    table = pa.table(arrays).replace_schema_metadata(metadata)
    pq.write_table(table, buffer, row_group_size=rows_per_group)
    return buffer.getvalue()

"""Files of models on the Hugging Face hub: once for each commit, checked, and with a token."""

import pytest

from sagan_jax.errors import UserError
from sagan_jax.system import download
from sagan_jax.system import hub as on_hub
from tests import model_hub_server
from tests.model_hub_server import COMMIT

FILES = {'a.json': b'{}', 'b.safetensors': b'weights', 'README.md': b'#'}
WANTED = ('a.json', 'b.safetensors')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    with model_hub_server.serving(monkeypatch) as server:
        server.files = dict(FILES)
        yield server


def snapshot(address='hf://me/shapes'):
    return on_hub.snapshot(address, WANTED)


def test_files_are_downloaded_once_for_each_commit(hub, capsys):
    folder = snapshot()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in WANTED
    }
    assert f'hf://me/shapes@{COMMIT}\n' in capsys.readouterr().out
    first, *files = hub.requests
    assert first == ('127.0.0.1', '/api/models/me/shapes/revision/main?blobs=true', None)
    paths = [path for host, path, _ in files if host == '127.0.0.1']
    assert paths == [f'/me/shapes/resolve/{COMMIT}/{name}' for name in WANTED]
    hub.requests.clear()
    assert snapshot() == folder
    assert len(hub.requests) == 1  # whether there is a new commit
    hub.status = 500
    hub.requests.clear()
    assert snapshot(f'hf://me/shapes@{COMMIT}') == folder
    assert not hub.requests


def test_a_token_goes_to_the_hub_and_nowhere_else(hub, monkeypatch):
    hub.token = 'Bearer secret'
    with pytest.raises(UserError, match=r'no access to a model me/shapes at revision main \(401'):
        snapshot()
    monkeypatch.setenv('HF_TOKEN', 'secret')
    hub.requests.clear()
    snapshot('hf://me/shapes@refs/pr/1')
    assert '/revision/refs%2Fpr%2F1?' in hub.requests[0][1]
    assert {(host, token) for host, _, token in hub.requests} == {
        ('127.0.0.1', 'Bearer secret'), ('localhost', None),
    }  # fmt: skip


def test_what_the_hub_sends_is_checked(hub):
    hub.answer = model_hub_server.describe(FILES)
    hub.files['b.safetensors'] = b'other weights'
    with pytest.raises(UserError, match=r'and the hub has .* for it: try again\.$'):
        snapshot()
    hub.files['b.safetensors'] = FILES['b.safetensors']
    assert (snapshot() / 'b.safetensors').read_bytes() == b'weights'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'status': 404}, r'gives no access to a model .* \(404 from '),
        ({'status': 503}, r'The hub does not answer at .*: try again\.$'),
        ({'answer': []}, r'is not about a model .*: check HF_ENDPOINT\.$'),
        ({'answer': {'sha': 'main', 'siblings': []}}, r'is not about a model \(no commit\)'),
        ({'files': {'a.json': b'{}'}}, r'shapes has no b\.safetensors, as an export of this'),
    ],
)
def test_what_is_not_on_the_hub_is_said(hub, change, message):
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(UserError, match=message):
        snapshot()


def test_a_hub_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match=r'does not answer at http://127\.0\.0\.1:9/api/models'):
        snapshot()


@pytest.mark.parametrize(
    'address',
    ['hf://shapes', 'hf:me/shapes', 'hf://me/../x', 'hf://me/a/b', 'hf://me/a@', 'hf://-/a',
     'hf://me/a?b', 'hf://me/a@../..', 'hf://me/a\n'],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(address, monkeypatch):
    monkeypatch.setattr(download.urllib.request, 'urlopen', None)
    with pytest.raises(UserError, match='names no model of the Hugging Face hub: give hf://OWNER'):
        snapshot(address)

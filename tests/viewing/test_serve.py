"""The server of a run: answers, errors in one sentence, refused hosts, concurrent requests."""

import base64
import concurrent.futures
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import sagan_jax
from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.viewing import answers, requests, serve
from tests import tiny
from tests.viewing.test_report import Page


@pytest.fixture(scope='module')
def model(trained_workdir):
    return sagan_jax.load(trained_workdir)


@pytest.fixture(scope='module')
def port(trained_workdir, tmp_path_factory):
    """The port of a server of a copy of the run."""
    workdir = tmp_path_factory.mktemp('served') / 'run'
    shutil.copytree(trained_workdir, workdir)
    with serve.create_server(workdir, '127.0.0.1', 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def get(port, path, method='GET', **headers):
    """Status, headers and body."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def ask(port, path, **values):
    status, _, body = get(port, f'{path}?{urllib.parse.urlencode(values)}')
    assert status == 200, body
    return json.loads(body)


def pixels(uri):
    data = base64.b64decode(uri.removeprefix('data:image/webp;base64,'))
    return np.asarray(Image.open(io.BytesIO(data)))


# ---- Drawings. ---------------------------------------------------------------------------------


def test_samples_equal_those_of_the_model(port, model):
    for asked, classes, seed in (
        ({'class': 'class1', 'seed': 5}, ['class1'] * 18, 5),
        ({'class': '', 'seed': ''}, [f'class{i % 3}' for i in range(18)], 0),
    ):
        found = ask(port, '/samples', **asked, truncation=0.7, n=18)
        assert found['step'] == 7
        assert [image['class'] for image in found['images']] == classes
        images = np.stack([pixels(image['source']) for image in found['images']])
        expected = model.sample(classes, 18, seed, truncation=0.7)
        assert np.abs(images.astype(int) - expected).max() <= 1


def test_the_map_of_a_pixel_equals_that_of_its_query(port, model):
    generator, _ = models.create(model.config)
    z, label = model.noise(6, seed=3)[5:], np.array([2], np.int32)
    maps = jax.jit(generator.attention)(model.generator, z, label)
    assert list(maps)
    rows = []
    for row, column in ((0, 0), (13, 30), (31, 7)):
        asked = {'class': 'class2', 'seed': 3, 'number': 5, 'row': row, 'column': column}
        found = ask(port, '/attention', step=7, **asked)['maps']
        assert [each['resolution'] for each in found] == sorted(maps)
        for each in found:
            size = each['resolution']
            query = row * size // 32 * size + column * size // 32
            expected = np.asarray(maps[size])[0, query]
            np.testing.assert_allclose(np.ravel(each['weights']), expected, atol=1e-6)
            assert len(each['weights']) == len(each['weights'][0])
        rows.append(found[-1]['weights'])
    assert np.abs(np.array(rows[0]) - rows[1]).max() > 1e-4  # different pixels have different maps


def test_a_newer_checkpoint_is_used(trained_workdir, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(trained_workdir, workdir)
    shutil.move(workdir / 'checkpoints' / '7', tmp_path / 'later')
    answer = answers.create_answers(workdir, local=True)
    waiting = answer('localhost', '/samples?n=1')
    assert (waiting.status, b'no checkpoint' in waiting.body) == (503, True)
    shutil.copytree(tmp_path / 'later', workdir / 'checkpoints' / '7')
    assert json.loads(answer('localhost', '/samples?n=1').body)['step'] == 7
    shutil.copytree(tmp_path / 'later', workdir / 'checkpoints' / '9')
    shutil.rmtree(workdir / 'checkpoints' / '7')
    assert json.loads(answer('localhost', '/samples?n=1').body)['step'] == 9
    old = answer('localhost', '/attention?step=7')
    assert (old.status, old.body) == (409, b'The run has reached step 9: draw again.')
    (workdir / 'checkpoints' / '11').mkdir()  # a damaged one leaves the last one in use
    assert json.loads(answer('localhost', '/samples?n=1').body)['step'] == 9


# ---- Errors. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('query', 'sentence'),
    [
        ('class=99999', "There is no class '99999': give names such as class0 or indices below 3."),
        ('class=../../etc/passwd', "There is no class '../../etc/passwd'"),
        ('class=<script>', "There is no class '<script>'"),
        ('seed=text', "seed='text' should be an integer from 0 to 4294967295."),
        ('seed=-1', "seed='-1'"),
        ('seed=4294967296', "seed='4294967296'"),
        ('seed=%D9%A3', "seed='٣'"),
        ('n=10000', "n='10000' should be an integer from 1 to 64."),
        ('n=0', "n='0'"),
        ('n=1e1', "n='1e1'"),
        ('truncation=much', "truncation='much' is not a number"),
        ('truncation=nan', 'truncation nan is out of range'),
        ('truncation=inf', 'truncation inf is out of range'),
        ('truncation=0', 'truncation 0.0 is out of range'),
        ('sed=1', "'sed' is not accepted: give each of class, seed, truncation, n"),
        ('seed=1&seed=2', "'seed' is not accepted"),
        (f'class={"a" * 1000}', "'class' is not accepted"),
        ('&'.join(f'n{i}=1' for i in range(30)), 'This query cannot be read'),
        ('class=%ff', 'This query cannot be read'),
    ],
)
def test_invalid_queries_are_answered_in_one_sentence(port, query, sentence):
    status, headers, body = get(port, f'/samples?{query}')
    text = body.decode()
    assert status == 400
    assert sentence in text
    assert text.endswith('.')
    assert '\n' not in text
    assert headers['Content-Type'] == 'text/plain; charset=utf-8'
    assert headers['X-Content-Type-Options'] == 'nosniff'


@pytest.mark.parametrize('query', ['row=32', 'column=-1', 'number=64', 'step=x', 'n=3', 'class=x'])
def test_invalid_pixels(port, query):
    status, _, body = get(port, f'/attention?{query}')
    assert status == 400
    assert query.split('=')[0].encode() in body


def test_other_paths_methods_and_hosts(port):
    for path in ('/nowhere', '/config.json', '/../config.json', '/samples/'):
        assert get(port, path)[0] == 404
    assert get(port, '/', method='POST')[0] == 501
    for host in ('evil.example', f'evil.example:{port}', '127.0.0.1.evil.example', '', '[x'):
        assert get(port, '/', Host=host)[0] == 403
    for host in ('localhost:1234', '127.0.0.1', '[::1]:80', 'LOCALHOST'):
        assert get(port, '/draw', Host=host)[0] == 200


def test_a_public_server_answers_under_any_name(trained_workdir):
    assert (
        answers.create_answers(trained_workdir, local=False)('evil.example', '/draw').status == 200
    )


def test_a_missing_run_or_a_used_port_is_refused(trained_workdir, tmp_path, port):
    with pytest.raises(UserError, match='There is no run in'):
        serve.create_server(tmp_path, '127.0.0.1', 0)
    with pytest.raises(UserError, match=f'Port {port} on 127.0.0.1 is unavailable'):
        serve.create_server(trained_workdir, '127.0.0.1', port)
    with pytest.raises(UserError, match='choose another --port or --host'):
        serve.create_server(trained_workdir, 'no such host', 0)


# ---- Concurrent requests. ----------------------------------------------------------------------


def test_two_hundred_concurrent_requests_are_answered(port):
    paths = ['/', '/draw', '/samples?n=1', '/attention?row=3', '/samples?n=0'] * 40
    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        statuses = list(pool.map(lambda path: get(port, path)[0], paths))
    assert statuses == [200, 200, 200, 200, 400] * 40


def test_pages_and_errors_do_not_wait_for_the_device(trained_workdir, monkeypatch):
    """While one request holds the device, pages are served and drawings are refused in time."""
    monkeypatch.setattr(requests, '_MAX_WAIT', 0.2)
    monkeypatch.setattr(requests, '_MAX_WAITING', 2)
    entered, leave = threading.Event(), threading.Event()

    def create_loader(workdir):
        def load(step):
            entered.set()
            assert leave.wait(60)
            raise UserError('The end.')

        return load

    monkeypatch.setattr(requests, 'create_loader', create_loader)
    answer = answers.create_answers(trained_workdir, local=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(answer, 'localhost', '/samples')
        assert entered.wait(60)
        assert answer('localhost', '/').status == 200
        assert answer('localhost', '/draw').status == 200
        assert answer('localhost', '/samples?class=99999').status == 400
        others = [pool.submit(answer, 'localhost', '/samples') for _ in range(4)]
        bodies = {other.result().body for other in others}
        leave.set()
        assert first.result().body == b'The end.'
    assert {status.result().status for status in others} == {503}
    assert bodies == {
        b'Too many requests wait for the device: try again in a minute.',
        b'The device was busy for a minute: try again.',
    }


# ---- Pages. ------------------------------------------------------------------------------------


def test_an_unchanged_page_is_not_sent_again(port):
    status, headers, body = get(port, '/')
    assert (status, b'setInterval' in body) == (200, True)
    again = get(port, '/', **{'If-None-Match': headers['ETag']})
    assert (again[0], again[2]) == (304, b'')


def test_policies(port):
    for path in ('/', '/draw'):
        _, headers, body = get(port, path)
        assert "default-src 'none'" in headers['Content-Security-Policy']
        assert "frame-ancestors 'none'" in headers['Content-Security-Policy']
        assert b'://' not in body
    options = re.findall(r'<option[^>]*>([^<]*)', body.decode())
    assert options == ['all in turn', 'class0', 'class1', 'class2']


def test_names_on_the_draw_page_are_escaped(trained_workdir, tmp_path):
    workdir = tmp_path / '<b>run & "x"'
    names = ['</option><script>alert(1)</script>', '" onload="alert(1)', "a & 'b'"]
    RunFolder(workdir).write_record(
        provenance.record(tiny.config()) | {'data': {'class_names': names}}
    )
    answer = answers.create_answers(workdir, local=True)
    found = Page(answer('localhost', '/draw').body.decode())
    assert found.text.count(f'Samples of {workdir.name}') == 2
    assert f'Class all in turn {" ".join(names)} Seed' in found.text
    assert (len(found.all('script')), found.all('b')) == (1, [])
    assert not any(name.startswith('on') for _, given in found.tags for name in given)
    RunFolder(workdir).write_record(
        provenance.record(tiny.config(model__conditioning='none'))
        | {'data': {'class_names': names}}
    )
    answer = answers.create_answers(workdir, local=True)
    assert Page(answer('localhost', '/draw').body.decode()).all('select') == []


MADE = ('img', '.chosen')  # created by draw.js


def test_selectors_of_scripts_match_their_page(trained_workdir, tmp_path):
    """Every selector of a script matches an element of its page."""
    workdir = tmp_path / 'run'
    shutil.copytree(trained_workdir, workdir)
    (workdir / 'samples').mkdir()
    Image.new('RGB', (64, 96)).save(workdir / 'samples' / '000000.png')
    lines = [json.dumps({'step': step, 'generator_loss': 1.0}) for step in (1, 2)]
    (workdir / 'metrics.jsonl').write_text('\n'.join(lines))
    answer = answers.create_answers(workdir, local=True)
    templates = Path(answers.__file__).parent / 'templates'
    for path, scripts, made in (('/', ('page.js', 'live.js'), ()), ('/draw', ('draw.js',), MADE)):
        tags = Page(answer('localhost', path).body.decode()).tags
        code = ''.join((templates / name).read_text() for name in scripts)
        looked = re.findall(r"(?:querySelector(?:All)?|closest\??\.?|matches)\('([^']+)'\)", code)
        assert len(looked) >= 4
        for selector in looked:
            assert selector in made or any(matches(selector, *tag) for tag in tags), selector


def matches(selector, tag, attributes):
    """Whether a selector such as 'a', '.b', 'c[d=e]' or 'f:last-of-type' matches a tag."""
    name, kind, key, value = re.fullmatch(
        r'(\w*)(?:\.(\w+))?(?:\[(\w+)="?(\w+)"?\])?(?::last-of-type)?', selector
    ).groups()
    return (
        name in ('', tag)
        and (kind is None or kind in attributes.get('class', '').split())
        and (key is None or attributes.get(key) == value)
    )


def test_the_command_line_serves_until_interrupted(trained_workdir):
    root = str(Path(__file__).parents[2])
    flags = ['--mode', 'serve', '--workdir', str(trained_workdir), '--port', '0']
    process = subprocess.Popen(
        [sys.executable, '-m', 'sagan_jax.main', *flags],
        cwd=root,
        env=os.environ | {'PYTHONPATH': root},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if line.startswith('serving'):
                break
        found = int(re.search(r'http://127\.0\.0\.1:(\d+)/', line)[1])
        assert get(found, '/draw')[0] == 200
        process.send_signal(signal.SIGINT)
        assert 'ended          serving' in process.stdout.read()
        assert process.wait(60) == 0
    finally:
        process.kill()

"""The server of a run: answers, errors in one sentence, refused hosts, concurrent requests."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import sagan_jax
from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.run import checkpoints, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import create_state, state_shapes
from sagan_jax.trained.model import load_one
from sagan_jax.viewing import answers, requests, serve
from sagan_jax.viewing.answers import Request
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
    answer = answers.create_answers(workdir)
    waiting = answer(Request('/samples?n=1'))
    assert (waiting.status, b'no checkpoint' in waiting.body) == (503, True)
    shutil.copytree(tmp_path / 'later', workdir / 'checkpoints' / '7')
    assert json.loads(answer(Request('/samples?n=1')).body)['step'] == 7
    save(workdir, 9)
    shutil.rmtree(workdir / 'checkpoints' / '7')
    assert json.loads(answer(Request('/samples?n=1')).body)['step'] == 9
    old = answer(Request('/attention?step=7'))
    assert (old.status, old.body) == (409, b'The run has reached step 9: draw again.')
    (workdir / 'checkpoints' / '11').mkdir()  # a damaged one leaves the last one in use
    assert json.loads(answer(Request('/samples?n=1')).body)['step'] == 9


def save(workdir, step, change=0.0):
    """Writes a checkpoint whose parameters are those of the start of training, changed."""
    config = tiny.config(ema__decay=0.5)
    state = jax.tree.map(
        lambda leaf: (
            np.asarray(leaf) + np.float32(change)
            if np.issubdtype(leaf.dtype, np.floating)
            else np.asarray(leaf)
        ),
        create_state(config),
    )
    manager = checkpoints.open_manager(workdir / 'checkpoints', keep=9)
    checkpoints.save(manager, step, state, config)
    manager.close()


def test_a_run_replaced_at_the_same_step_is_noticed(trained_workdir, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(trained_workdir, workdir)
    answer = answers.create_answers(workdir)
    first = json.loads(answer(Request('/samples?n=2')).body)
    assert json.loads(answer(Request('/samples?n=2')).body) == first
    assert answer(Request(f'/attention?step=7&model={first["model"]}')).status == 200

    shutil.rmtree(workdir / 'checkpoints')
    save(workdir, 7, change=0.1)
    second = json.loads(answer(Request('/samples?n=2')).body)
    new = sagan_jax.load(workdir)
    assert (second['step'], second['model']) == (7, new.sha256[:16])
    assert second['model'] != first['model']
    images = np.stack([pixels(image['source']) for image in second['images']])
    assert np.abs(images.astype(int) - new.sample(n=2)).max() <= 1
    old = answer(Request(f'/attention?step=7&model={first["model"]}'))
    assert (old.status, old.body) == (409, b'Step 7 is of another run now: draw again.')

    names = ['cat', 'dog', 'owl']  # a run with other classes
    record = json.loads((workdir / 'config.json').read_text()) | {'data': {'class_names': names}}
    RunFolder(workdir).write_record(record)
    assert b'>owl' in answer(Request('/draw')).body
    third = json.loads(answer(Request('/samples?n=3')).body)
    assert [image['class'] for image in third['images']] == names
    (workdir / 'config.json').unlink()
    gone = answer(Request('/samples?n=3'))
    assert (gone.status, b'config.json, cannot be used' in gone.body) == (400, True)


def odd_names(folder):
    """Changes to a folder of checkpoints, the last of which is that of step 9."""
    return {
        'damaged': lambda: (folder / '11').mkdir(),
        'zeros': lambda: shutil.copytree(folder / '9', folder / '0012'),
        'digits': lambda: shutil.copytree(folder / '9', folder / '\N{ARABIC-INDIC DIGIT NINE}1'),
        'unfinished': lambda: shutil.copytree(folder / '9', folder / '13.orbax-checkpoint-tmp'),
        'file': lambda: (folder / '50').write_text('mine'),
        'note': lambda: (folder / 'notes').mkdir(),
    }


def test_newest_means_what_it_means_elsewhere(trained_workdir, tmp_path, monkeypatch):
    workdir, before = tmp_path / 'run', tmp_path / 'before'
    shutil.copytree(trained_workdir, workdir)
    save(workdir, 9)
    shutil.copytree(workdir / 'checkpoints', before)
    config = tiny.config(ema__decay=0.5)

    def load(which):
        """Models that draw nothing, since compiling takes seconds."""
        run, like = RunFolder(workdir), state_shapes(config)
        with checkpoints.chosen(config, run, which, like) as states:
            for step, _ in states:
                yield SimpleNamespace(step=step, sha256='', attention=lambda *_: {})

    monkeypatch.setattr(requests, 'create_loader', lambda workdir: load)
    seen = set()
    for name, change in odd_names(workdir / 'checkpoints').items():
        shutil.rmtree(workdir / 'checkpoints')
        shutil.copytree(before, workdir / 'checkpoints')
        running = answers.create_answers(workdir)
        assert json.loads(running(Request('/attention')).body)['step'] == 9
        change()
        there, started = running(Request('/attention')), answers.create_answers(workdir)
        expected = status_of_newest(load)
        found = started(Request('/attention'))
        seen.add(found.status)
        if found.status == 200:
            assert json.loads(found.body)['step'] == expected, name
            assert there.body == found.body
        else:
            assert (found.status, found.body.decode()) == (503, expected), name
            assert json.loads(there.body)['step'] == 9  # the last model stays
    assert seen == {200, 503}


def status_of_newest(load):
    """The step of the newest checkpoint, or the sentence that refuses it."""
    try:
        return load_one(load, 'newest').step
    except UserError as error:
        return str(error)


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


@pytest.mark.parametrize(
    ('host', 'status'),
    [
        ('localhost', 200),
        ('localhost.:80', 200),
        ('gpu1', 200),
        ('GPU1:8000', 200),
        ('10.0.0.7:8000', 200),
        ('[fe80::1]:80', 200),
        ('gpu2', 403),
        ('gpu1.evil.example', 403),
        ('10.0.0.7.evil.example', 403),
        ('localhost.evil.example', 403),
        ('evil.example', 403),
        ('gpu1@evil.example', 403),
        ('0x7f.1', 403),
        ('', 403),
    ],
)
def test_names_of_others_are_refused_wherever_it_listens(trained_workdir, host, status):
    answer = answers.create_answers(trained_workdir, ['0.0.0.0', 'gpu1'])
    for path in ('/', '/draw', '/nowhere'):
        found = answer(Request(path, host=host)).status
        assert found == (404 if status == 200 and path == '/nowhere' else status)


OWN, LOCAL = 'http://gpu1:8000', 'http://localhost:8000'


@pytest.mark.parametrize(
    ('origin', 'site', 'is_foreign'),
    [
        ('', '', False),
        ('', 'same-origin', False),
        ('', 'none', False),
        (OWN, 'same-origin', False),
        (OWN, '', False),
        ('', 'cross-site', True),
        ('', 'same-site', True),
        (OWN, 'cross-site', True),
        (LOCAL, '', True),
        ('http://gpu1:3000', '', True),
        ('http://gpu1', 'same-site', True),
        ('http://evil.example', '', True),
        ('http://evil.example', 'same-origin', True),
        ('null', '', True),
        ('file://', '', True),
    ],
)
def test_other_pages_do_not_draw(trained_workdir, monkeypatch, origin, site, is_foreign):
    drawn = []
    draw = {'samples': lambda query, has_left: drawn.append(query) or {}}
    monkeypatch.setattr(requests, 'create_drawings', lambda workdir: draw)
    answer = answers.create_answers(trained_workdir, ['gpu1'])
    request = Request('/samples?n=1', 'gpu1:8000', origin, site)
    assert answer(request).status == (403 if is_foreign else 200)
    assert drawn == ([] if is_foreign else ['n=1'])
    for page in ('/', '/draw'):  # a link from elsewhere may lead here
        assert answer(request._replace(target=page)).status == 200


def test_headers_of_other_pages_arrive(port):
    for headers in ({'Origin': 'http://evil.example'}, {'Sec-Fetch-Site': 'cross-site'}):
        status, _, body = get(port, '/samples?n=1', **headers)
        assert (status, body) == (403, b'Another page must not draw here: open /draw.')
    own = {'Origin': f'http://127.0.0.1:{port}', 'Sec-Fetch-Site': 'same-origin'}
    assert get(port, '/samples?n=0', **own)[0] == 400


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
    answer = answers.create_answers(trained_workdir)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(answer, Request('/samples'))
        assert entered.wait(60)
        assert answer(Request('/')).status == 200
        assert answer(Request('/draw')).status == 200
        assert answer(Request('/samples?class=99999')).status == 400
        others = [pool.submit(answer, Request('/samples')) for _ in range(4)]
        bodies = {other.result().body for other in others}
        leave.set()
        assert first.result().body == b'The end.'
    assert {status.result().status for status in others} == {503}
    assert bodies == {
        b'Too many requests wait for the device: try again in a minute.',
        b'The device was busy for a minute: try again.',
    }


def connect(port, text=b''):
    connection = socket.create_connection(('127.0.0.1', port), timeout=30)
    connection.sendall(text)
    return connection


def test_slow_clients_shut_nobody_out(port):
    slow = []
    try:
        for _ in range(400):
            slow.append(connect(port, b'GET / HTTP/1.1\r\nHost: local'))
        started = time.monotonic()
        assert get(port, '/draw')[0] == 200
        assert time.monotonic() - started < 5  # the deadline of a head is twice as long
        closed = [connection for connection in slow if is_closed(connection)]
        assert 100 <= len(closed) <= 110
        assert set(closed) == set(slow[: len(closed)])  # who has waited for longest
    finally:
        for connection in slow:
            connection.close()


def is_closed(connection):
    connection.settimeout(0)
    try:
        return connection.recv(1) == b''
    except BlockingIOError:
        return False


@pytest.mark.parametrize('beginning', [b'', b'GET /draw HTTP/1.1\r\nHost: localhost\r\n\r\n'])
def test_a_head_has_a_deadline_however_its_bytes_come(port, monkeypatch, beginning):
    monkeypatch.setattr(serve, '_HEAD_SECONDS', 0.5)
    connection = connect(port, beginning)
    time.sleep(0.2 if beginning else 0)
    started = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() < started + 20:
            connection.sendall(b'G')
            time.sleep(0.05)
    assert 0.3 < time.monotonic() - started < 10
    connection.close()


class Blank:
    """A model that draws black images."""

    step, sha256 = 7, 'a' * 64

    def __init__(self):
        self.drawn = 0

    def stream(self, indices, labels, seed, truncation):
        self.drawn += 1
        yield np.zeros((len(indices), 32, 32, 3), np.uint8)


def test_nothing_is_drawn_for_clients_that_have_left(trained_workdir, monkeypatch):
    entered, leave, blank = threading.Event(), threading.Event(), Blank()

    def load(which):
        entered.set()
        assert leave.wait(60)
        return iter([blank])

    monkeypatch.setattr(requests, 'create_loader', lambda workdir: load)
    with serve.create_server(trained_workdir, '127.0.0.1', 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        asked = b'GET /samples?n=1 HTTP/1.1\r\nHost: localhost\r\n\r\n'
        stays = connect(port, asked)
        assert entered.wait(60)
        others = [connect(port, asked) for _ in range(20)]
        deadline = time.monotonic() + 30
        while len(server.open - server.awaited.keys()) < 21:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for connection in others[1:]:
            connection.close()
        while len(server.open) > 2:  # they are let go while the device is busy
            assert time.monotonic() < deadline
            time.sleep(0.01)
        leave.set()
        for connection in (stays, others[0]):
            assert connection.recv(12) == b'HTTP/1.1 200'
            connection.close()
        server.shutdown()
    assert blank.drawn == 2


def test_a_client_that_left_before_its_turn_gets_no_drawing(trained_workdir, monkeypatch):
    blank = Blank()
    monkeypatch.setattr(requests, 'create_loader', lambda workdir: lambda which: iter([blank]))
    answer = answers.create_answers(trained_workdir)
    with pytest.raises(requests.ClientLeft):
        answer(Request('/samples?n=1', has_left=lambda: True))
    assert blank.drawn == 0
    moments = iter([False, True, True])  # it leaves after the first of four parts
    with pytest.raises(requests.ClientLeft):
        answer(Request('/samples?n=64', has_left=lambda: next(moments)))
    assert blank.drawn == 1


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
    answer = answers.create_answers(workdir)
    found = Page(answer(Request('/draw')).body.decode())
    assert found.text.count(f'Samples of {workdir.name}') == 2
    assert f'Class all in turn {" ".join(names)} Seed' in found.text
    assert (len(found.all('script')), found.all('b')) == (1, [])
    assert not any(name.startswith('on') for _, given in found.tags for name in given)
    RunFolder(workdir).write_record(
        provenance.record(tiny.config(model__conditioning='none'))
        | {'data': {'class_names': names}}
    )
    answer = answers.create_answers(workdir)
    assert Page(answer(Request('/draw')).body.decode()).all('select') == []


MADE = ('img', '.chosen')  # created by draw.js


def test_selectors_of_scripts_match_their_page(trained_workdir, tmp_path):
    """Every selector of a script matches an element of its page."""
    workdir = tmp_path / 'run'
    shutil.copytree(trained_workdir, workdir)
    (workdir / 'samples').mkdir()
    Image.new('RGB', (64, 96)).save(workdir / 'samples' / '000000.png')
    lines = [json.dumps({'step': step, 'generator_loss': 1.0}) for step in (1, 2)]
    (workdir / 'metrics.jsonl').write_text('\n'.join(lines))
    answer = answers.create_answers(workdir)
    templates = Path(answers.__file__).parent / 'templates'
    for path, scripts, made in (('/', ('page.js', 'live.js'), ()), ('/draw', ('draw.js',), MADE)):
        tags = Page(answer(Request(path)).body.decode()).tags
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


def start(workdir, *flags):
    """Starts a server in a process of its own; returns the process and its port."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [
            *(sys.executable, '-m', 'sagan_jax.main', '--mode', 'serve'),
            *('--workdir', str(workdir), '--port', '0', *flags),
        ],
        cwd=root,
        env=os.environ | {'PYTHONPATH': root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith('serving'):
            break
    return process, int(re.search(r'http://[0-9.]+:(\d+)/', line)[1])


def assert_ends_while_it_draws(workdir, number, seconds):
    """Starts a server, asks for drawings, and signals it so many seconds later."""
    process, port = start(workdir)
    try:
        assert get(port, '/draw')[0] == 200
        connections = [
            connect(port, b'GET /samples?n=64 HTTP/1.1\r\nHost: localhost\r\n\r\n')
            for _ in range(8)
        ]
        time.sleep(seconds)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert out == f'\nended          serving {workdir}\n'
        assert 'Traceback' not in err
        assert 'Fatal' not in err
        for connection in connections:
            connection.close()
    finally:
        process.kill()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_one_line_while_it_draws(trained_workdir, number):
    assert_ends_while_it_draws(trained_workdir, number, seconds=0.5)


@pytest.mark.thorough
@pytest.mark.parametrize('attempt', range(50))
def test_it_ends_in_one_line_whenever_it_is_interrupted(trained_workdir, attempt):
    """While it loads, compiles, draws, encodes and sends."""
    assert_ends_while_it_draws(trained_workdir, signal.SIGINT, seconds=attempt / 10)


def test_a_server_for_others_warns_and_keeps_their_names_out(trained_workdir):
    process, port = start(trained_workdir, '--host', '0.0.0.0')
    try:
        assert process.stdout.readline().startswith('warning        others on the network can see')
        for host, status in (('evil.example', 403), (socket.gethostname(), 200), ('10.0.0.7', 200)):
            assert get(port, '/draw', Host=host)[0] == status
    finally:
        process.kill()
        process.communicate()

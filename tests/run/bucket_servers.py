"""Local services with the interfaces of Google Cloud Storage and S3, and a bucket in memory."""

import http.server
import json
import threading
import time
import urllib.parse
from contextlib import contextmanager

from sagan_jax.system.buckets import Address, BucketError, Store

ADDRESS = Address('s3', 'bucket', 'runs/a')


class Killed(BaseException):
    """The process is killed at a request."""


class Memory:
    """A bucket in memory.

    `before(kind, name)` is called before each request, and `after` when it is done; `requests` has
    the kinds and names of those that came through.
    """

    def __init__(self):
        self.objects, self.requests, self.lock = {}, [], threading.Lock()
        self.before = self.after = lambda kind, name: None

    def store(self, address=ADDRESS):
        def requesting(kind, answer):
            def request(name, *content):
                self.before(kind, name)
                with self.lock:
                    self.requests.append((kind, name))
                    found = answer(name, *content)
                self.after(kind, name)
                return found

            return request

        def create(name, content):
            return self.objects.setdefault(name, content) is content

        return Store(
            address,
            list=requesting('list', self.list),
            read=requesting('read', self.objects.get),
            write=requesting('write', self.objects.__setitem__),
            create=requesting('create', create),
            remove=requesting('remove', lambda name: self.objects.pop(name, None)),
        )

    def list(self, folder):
        start = folder and f'{folder}/'
        return {n: len(content) for n, content in self.objects.items() if n.startswith(start)}


def fail(kind='', name=''):
    raise BucketError(f'{ADDRESS} does not answer (503): check it.', 75, '503')


@contextmanager
def s3(monkeypatch, tmp_path):
    """An S3 in this process, with a bucket called 'bucket'."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer('127.0.0.1', port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        'AWS_ENDPOINT_URL': f'http://{host}:{port}',
        'AWS_ACCESS_KEY_ID': 'key',
        'AWS_SECRET_ACCESS_KEY': 'secret',
        'AWS_DEFAULT_REGION': 'us-east-1',
        'AWS_CONFIG_FILE': str(tmp_path / 'none'),
        'AWS_SHARED_CREDENTIALS_FILE': str(tmp_path / 'none'),
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client('s3').create_bucket(Bucket='bucket')
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def gs(monkeypatch, tmp_path):
    """A Google Cloud Storage in this process, with a bucket called 'bucket', in pages of three.

    `failures` has the statuses of the next answers, and `delay` is the time of each in seconds.
    """
    objects, lock = {}, threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def answer(self, status, content=b'', kind='application/json'):
            self.send_response(status)
            self.send_header('Content-Type', kind)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def respond(self):
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            body = self.rfile.read(int(self.headers['Content-Length'] or 0))
            time.sleep(server.delay)
            bucket, _, name = url.path.partition('/b/')[2].partition('/o')
            name = urllib.parse.unquote(name.removeprefix('/'))
            with lock:
                status = server.failures.pop(0) if server.failures else 200
                if status != 200:
                    return self.answer(status)
                if bucket != 'bucket' or (name and name not in objects):
                    return self.answer(404)
                if self.command == 'DELETE':
                    del objects[name]
                    return self.answer(204)
                if self.command == 'POST':
                    return self.upload(query, body)
                if name:
                    return self.answer(200, objects[name], 'application/octet-stream')
                return self.answer(200, self.page(query))

        def upload(self, query, body):
            boundary = self.headers['Content-Type'].partition('"')[2].strip('"').encode()
            _, head, part, _ = body.split(b'--' + boundary)
            name = json.loads(head.partition(b'\n\n')[2])['name']
            if query.get('ifGenerationMatch') == '0' and name in objects:
                return self.answer(412)
            objects[name] = part.partition(b'\n\n')[2][:-1]
            return self.answer(200, json.dumps({'name': name}).encode())

        def page(self, query):
            names = sorted(name for name in objects if name.startswith(query.get('prefix', '')))
            start = int(query.get('pageToken', 0))
            items = [{'name': n, 'size': len(objects[n])} for n in names[start : start + 3]]
            more = {'nextPageToken': str(start + 3)} if start + 3 < len(names) else {}
            return json.dumps({'kind': 'storage#objects', 'items': items} | more).encode()

        do_GET = do_POST = do_DELETE = respond

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.failures, server.delay = [], 0
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv('NO_GCE_CHECK', 'true')  # it would wait for credentials
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}')
        yield server
        server.shutdown()
        thread.join()

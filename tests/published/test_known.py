"""Published files are downloaded by name, and checked by the checksum that their name carries."""

import hashlib

import pytest

from sagan_jax.errors import UserError
from sagan_jax.published import conversion, known
from sagan_jax.published.known import Known
from tests import file_server

CONTENT = b'weights' * 100_000
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def server(monkeypatch, tmp_path):
    with file_server.serving(CONTENT) as server:
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
        monkeypatch.setattr(known, 'PREFIX', server.url)
        monkeypatch.setattr(known, 'FILES', {'small': Known(f'small-{CHECKSUM}.pth', 9.0, 10.0)})
        yield server


def test_a_known_file_is_downloaded_once_with_progress(server, tmp_path, capsys):
    path = known.fetch('small')
    assert path == tmp_path / 'sagan_jax' / f'small-{CHECKSUM}.pth'
    assert path.read_bytes() == CONTENT
    assert '700k/700k' in capsys.readouterr().err
    assert known.fetch('small') == path
    assert server.requests == [f'/small-{CHECKSUM}.pth']


def test_other_bytes_than_the_name_promises_are_refused(server, tmp_path):
    server.content = b'W' + CONTENT[1:]
    with pytest.raises(UserError, match='not that of its name'):
        known.fetch('small')
    server.content, server.cut = CONTENT, 5
    with pytest.raises(UserError, match=r'broke off after .* give the file\.$'):
        known.fetch('small')
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_unknown_names_are_refused(server):
    with pytest.raises(UserError, match="no known file 'large': choose among small"):
        known.fetch('large')


def test_every_known_file_has_a_checksum_and_a_url_of_its_own():
    checksums = [conversion.name_checksum(file.file) for file in known.FILES.values()]
    assert None not in checksums
    assert len(set(checksums)) == len(known.FILES) == 9
    for file in known.FILES.values():
        assert file.url == f'https://download.openmmlab.com/mmgen/sagan/{file.file}'


def test_a_file_that_differs_from_its_name_is_reported(tmp_path, capsys):
    for checksum, warned in ((CHECKSUM, False), ('0' * 8, True)):
        path = tmp_path / f'x-{checksum}.pth'
        path.write_bytes(CONTENT)
        record = conversion._describe(path)
        assert record['sha256'].startswith(CHECKSUM)
        assert record['bytes'] == len(CONTENT)
        assert ('not that of its name' in capsys.readouterr().out) == warned

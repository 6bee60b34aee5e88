"""Downloads that fail say why, and leave nothing."""

import resource

import pytest

from sagan_jax.errors import UserError
from sagan_jax.system import download
from tests import file_server


def test_a_full_disk_is_not_called_a_failure_of_the_network(tmp_path):
    path = tmp_path / 'file'
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with (
            file_server.serving(bytes(20_000)) as server,
            pytest.raises(UserError, match=r'file cannot be written \(File too large\): free disk'),
        ):
            download.download(server.url, path, lambda sha256: None, 'check the network')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())

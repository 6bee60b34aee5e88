"""Downloads of what others have published."""

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from sagan_jax.errors import UserError
from sagan_jax.system import failures
from sagan_jax.system.files import atomic_path
from sagan_jax.system.untrusted import reason


def request(url: str, token: str | None = None) -> urllib.request.Request:
    """A request, with a token for the host of `url` alone: it is not sent where that redirects."""
    made = urllib.request.Request(url)
    if token:
        made.add_unredirected_header('Authorization', f'Bearer {token}')
    return made


def download(
    url: str,
    path: Path,
    accept: Callable[[str], None],
    otherwise: str,
    token: str | None = None,
) -> None:
    """Downloads a file as a whole, with a progress bar.

    Args:
      url: where it is.
      path: where it will be.
      accept: called with its SHA-256 before it appears at `path`; may raise.
      otherwise: what to do if it cannot be downloaded, the end of a sentence.
      token: as for `request`.

    Raises:
      UserError: if the download fails or breaks off, or the disk is full.
    """
    digest, received = hashlib.sha256(), 0
    try:
        with atomic_path(path) as temporary:
            with (
                urllib.request.urlopen(request(url, token), timeout=60) as response,
                temporary.open('wb') as file,
                tqdm(desc=path.name, total=response.length, unit='B', unit_scale=True) as progress,
            ):
                while chunk := response.read(1 << 18):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    progress.update(len(chunk))
            if progress.total not in (None, received):
                raise ConnectionError(f'broke off after {received} of {progress.total} bytes')
            accept(digest.hexdigest())
    except (OSError, http.client.HTTPException) as error:
        if failures.is_full(error):
            raise UserError(
                f'{path} cannot be written ({reason(error)}): free disk space, and give the same '
                'command again.'
            ) from error
        raise UserError(f'Cannot download {url} ({error}): try again, or {otherwise}.') from error

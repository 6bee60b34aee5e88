"""Repositories of the Hugging Face hub: what they hold at a revision, and their files.

HF_TOKEN gives access to private repositories, and HF_ENDPOINT names another hub, as for
huggingface_hub.
"""

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sagan_jax.errors import UserError
from sagan_jax.system import paths
from sagan_jax.system.download import download, request
from sagan_jax.system.untrusted import parse_json, reason

_ADDRESS = re.compile(r'hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w./-]*))?/?', re.ASCII)
_COMMIT = re.compile('[0-9a-f]{40}')

_LARGEST = 2**26  # bytes of an answer about a repository


class Repository(NamedTuple):
    """A model on the hub, at one commit.

    Attributes:
      name: OWNER/NAME.
      commit: the revision.
      files: by path, each with its SHA-256 if the hub has it, as for large files.
    """

    name: str
    commit: str
    files: dict[str, str | None]


def snapshot(address: str, files: Sequence[str]) -> Path:
    """Downloads files of a model, once for each commit, and prints the commit.

    Args:
      address: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION with a commit, a branch or a tag.
      files: by name.

    Returns:
      The folder in the cache that holds them. If REVISION is a commit that is there already, the
      hub is not asked.

    Raises:
      UserError: as `find` and `fetch`, or if the address or the model is none that has the files.
    """
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise UserError(
            f'{address} names no model of the Hugging Face hub: give hf://OWNER/NAME, or '
            'hf://OWNER/NAME@REVISION.'
        )
    name, revision = found[1], found[2] or 'main'
    if _COMMIT.fullmatch(revision) and not _lacks(_folder(name, revision), files):
        return _folder(name, revision)
    repository = find(name, revision)
    print(f'loading        hf://{name}@{repository.commit}')
    missing = [file for file in files if file not in repository.files]
    if missing:
        raise UserError(
            f'hf://{name} has no {" and no ".join(missing)}, as an export of this program has: '
            'check the name.'
        )
    folder = _folder(name, repository.commit)
    for file in _lacks(folder, files):
        fetch(repository, file, folder)
    return folder


def _folder(name: str, commit: str) -> Path:
    return paths.cache_folder() / 'hub' / f'{name.replace("/", "--")}@{commit}'


def _lacks(folder: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (folder / file).exists()]


def find(name: str, revision: str) -> Repository:
    """Asks the hub for the files of a model. Downloads none.

    Args:
      name: OWNER/NAME.
      revision: a commit, a branch or a tag.

    Raises:
      UserError: if there is no such model or revision, it needs a token, or the hub does not
        answer.
    """
    url = f'{_endpoint()}/api/models/{name}/revision/{urllib.parse.quote(revision, safe="")}'
    try:
        with urllib.request.urlopen(request(f'{url}?blobs=true', _token()), timeout=60) as response:
            content = response.read(_LARGEST + 1)
        answer: Any = parse_json(content)
        if len(content) > _LARGEST or not _COMMIT.fullmatch(answer['sha']):
            raise ValueError('no commit')
        files = {
            str(file['rfilename']): (file.get('lfs') or {}).get('sha256')
            for file in answer['siblings']
        }
        return Repository(name, answer['sha'], files)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise UserError(
                f'The hub gives no access to a model {name} at revision {revision} ({error.code} '
                f'from {_endpoint()}): check both names, and set HF_TOKEN if it is private or '
                'gated.'
            ) from error
        raise UserError(f'The hub does not answer at {url} ({error}): try again.') from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'The hub does not answer at {url} ({reason(error)}): try again.'
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f'What {url} answers is not about a model ({reason(error)}): check HF_ENDPOINT.'
        ) from error


def fetch(repository: Repository, file: str, folder: Path) -> None:
    """Downloads one of a repository's files into a folder, and checks its SHA-256 if it has one.

    Raises:
      UserError: if the download fails, or sends something else.
    """
    quoted = urllib.parse.quote(file)
    url = f'{_endpoint()}/{repository.name}/resolve/{repository.commit}/{quoted}'
    expected = repository.files[file]

    def accept(sha256: str) -> None:
        if expected and sha256 != expected:
            raise UserError(
                f'What {url} sent has the SHA-256 {sha256}, and the hub has {expected} for it: '
                'try again.'
            )

    download(url, folder / file, accept, 'download the folder and load it', token=_token())


def _endpoint() -> str:
    return (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')


def _token() -> str | None:
    return os.environ.get('HF_TOKEN') or None

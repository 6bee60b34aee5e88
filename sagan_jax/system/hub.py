"""Repositories of the Hugging Face hub: what they hold at a revision, and their files.

HF_TOKEN gives access to private and gated repositories, and HF_ENDPOINT names another hub, as for
huggingface_hub.
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sagan_jax.errors import UserError, printable
from sagan_jax.system import paths
from sagan_jax.system.download import download, request
from sagan_jax.system.untrusted import parse_json, reason

_KINDS = {'models': 'model', 'datasets': 'data set'}
NAME = r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)'  # of a repository: OWNER/NAME
_ADDRESS = re.compile(rf'hf://{NAME}(?:@(\w[\w./-]*))?/?', re.ASCII)
_COMMIT = re.compile('[0-9a-f]{40}')
_LARGEST = 2**26  # bytes of an answer about a repository


class MissingRevisionError(UserError):
    """A repository that lacks a revision."""


class Repository(NamedTuple):
    """A model or a data set on the hub, at one commit.

    Attributes:
      name: OWNER/NAME.
      commit: the revision.
      files: by path, each with its SHA-256 if the hub has it, as for large files.
      kind: 'models' or 'datasets'.
      gated: whether its conditions have to be accepted.
      card: what its description says of it in YAML.
    """

    name: str
    commit: str
    files: Mapping[str, str | None]
    kind: str = 'models'
    gated: bool = False
    card: Mapping[str, Any] = MappingProxyType({})

    @property
    def page(self) -> str:
        return _page(self.name, self.kind)


def find(name: str, revision: str, kind: str = 'models') -> Repository:
    """Asks the hub for the files of a repository. Downloads none.

    Args:
      name: OWNER/NAME.
      revision: a commit, a branch or a tag.
      kind: 'models' or 'datasets'.

    Raises:
      MissingRevisionError: if there is no such revision.
      UserError: if there is no such repository, it needs a token, or the hub does not answer.
    """
    what = _KINDS[kind]
    quoted = urllib.parse.quote(revision, safe='')
    url = f'{_endpoint()}/api/{kind}/{name}/revision/{quoted}?blobs=true'
    try:
        with urllib.request.urlopen(request(url, _token()), timeout=60) as response:
            content = response.read(_LARGEST + 1)
        repository = _parsed(name, kind, content)
    except urllib.error.HTTPError as error:
        raise _refused(error, name, revision, kind) from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'The hub does not answer at {url} ({reason(error)}): try again.'
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f'What {url} answers is not about a {what} ({reason(error)}): check HF_ENDPOINT.'
        ) from error
    if repository.gated and not _token():
        raise _is_gated(name, kind)
    return repository


def fetch(repository: Repository, file: str, path: Path, otherwise: str) -> None:
    """Downloads one of a repository's files to `path`, unless it is there.

    Args:
      repository: what `find` returned.
      file: its path in the repository.
      path: where it will be.
      otherwise: what to do if it cannot be downloaded, the end of a sentence.

    Raises:
      UserError: if the download fails, or sends something else than the hub has.
    """
    quoted = urllib.parse.quote(file)
    of_kind = '' if repository.kind == 'models' else f'{repository.kind}/'
    url = f'{_endpoint()}/{of_kind}{repository.name}/resolve/{repository.commit}/{quoted}'
    expected = repository.files[file]

    def accept(sha256: str) -> None:
        if expected and sha256 != expected:
            raise UserError(
                f'What {url} sent has the SHA-256 {sha256}, and the hub has {expected} for it: '
                'try again.'
            )

    if path.exists():
        with path.open('rb') as existing:
            sha256 = hashlib.file_digest(existing, 'sha256').hexdigest()
        if expected in (None, sha256):
            return
    if repository.gated:
        otherwise = f'accept the conditions at {repository.page} with the account of HF_TOKEN'
    download(url, path, accept, otherwise, token=_token())


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
        fetch(repository, file, folder / file, 'download the folder and load it')
    return folder


def folder_name(name: str, commit: str) -> str:
    """What the folder of files of a repository at a commit is called."""
    return f'{name.replace("/", "--")}@{commit}'


def _folder(name: str, commit: str) -> Path:
    return paths.cache_folder() / 'hub' / folder_name(name, commit)


def _lacks(folder: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (folder / file).exists()]


def _parsed(name: str, kind: str, content: bytes) -> Repository:
    answer = parse_json(content)
    if len(content) > _LARGEST or not _COMMIT.fullmatch(answer['sha']):
        raise ValueError('no commit')
    files = {
        str(file['rfilename']): (file.get('lfs') or {}).get('sha256') for file in answer['siblings']
    }
    card = answer.get('cardData')
    card = card if isinstance(card, dict) else {}
    return Repository(name, answer['sha'], files, kind, bool(answer.get('gated')), card)


def _refused(error: urllib.error.HTTPError, name: str, revision: str, kind: str) -> UserError:
    code, what, page = error.headers.get('X-Error-Code'), _KINDS[kind], _page(name, kind)
    if code == 'GatedRepo':
        return _is_gated(name, kind)
    if code == 'RevisionNotFound':
        return MissingRevisionError(
            f'The {what} {name} has no revision {printable(revision)} on the hub: choose one of '
            f'{page}/commits/main.'
        )
    if error.code in (401, 403, 404):
        return UserError(
            f'The hub gives no access to a {what} {name} at revision {printable(revision)} '
            f'({error.code} from {_endpoint()}): check both names, and set HF_TOKEN if it is '
            'private or gated.'
        )
    return UserError(f'The hub does not answer at {page} ({error}): try again.')


def _is_gated(name: str, kind: str) -> UserError:
    return UserError(
        f'The {_KINDS[kind]} {name} is gated: accept its conditions at {_page(name, kind)}, and '
        'set HF_TOKEN to a token of your account.'
    )


def _page(name: str, kind: str) -> str:
    return f'{_endpoint()}/{name}' if kind == 'models' else f'{_endpoint()}/{kind}/{name}'


def _endpoint() -> str:
    return (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')


def _token() -> str | None:
    return os.environ.get('HF_TOKEN') or None

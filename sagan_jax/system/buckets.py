"""Buckets of Google Cloud Storage and of S3: addresses, and the requests that are made to them.

gcsfs and s3fs find the credentials as the vendors' own tools do. STORAGE_EMULATOR_HOST and
AWS_ENDPOINT_URL name another service, such as MinIO or an emulator.
"""

import contextlib
import functools
import importlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from sagan_jax.errors import UserError
from sagan_jax.system import paths
from sagan_jax.system.failures import RETRY
from sagan_jax.system.untrusted import reason

S = TypeVar('S')
T = TypeVar('T')

_THREADS = 8

# By scheme: the package and its class, and its settings. No listing is taken from a cache.
_SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # The class in gcsfs.core, because the one in gcsfs asks for the kind of bucket at each request.
    'gs': ('gcsfs.core', 'GCSFileSystem', {'requests_timeout': 120}),
    's3': ('s3fs.core', 'S3FileSystem', {}),
}
_ACCESS = {
    'gs': 'log in with `gcloud auth application-default login`, or check the rights of the account',
    's3': 'run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or check the '
    'rights of the account',
}
_CREATE = {'gs': 'gcloud storage buckets create gs://', 's3': 'aws s3 mb s3://'}
_REMOVE = {'gs': 'gcloud storage rm --recursive', 's3': 'aws s3 rm --recursive'}
_LIBRARIES = ('aiobotocore', 'aiohttp', 'botocore', 'gcsfs', 'google', 'requests', 's3fs')
_TAKEN = ('PreconditionFailed', 'ConditionalRequestConflict', '412', '409')  # as S3 calls it


class BucketError(UserError):
    """A request that a bucket has refused or not answered; `why` is a part of the sentence."""

    def __init__(self, sentence: str, status: int = 2, why: str = ''):
        super().__init__(sentence, status)
        self.why = why or sentence


class Address(NamedTuple):
    """A place in a bucket: gs://BUCKET/PATH or s3://BUCKET/PATH."""

    scheme: str
    bucket: str
    path: str

    def __str__(self) -> str:
        return f'{self.scheme}://{self.bucket}/{self.path}'

    def is_below(self, other: 'Address') -> bool:
        """Whether this place is in another one."""
        return self[:2] == other[:2] and self.path.startswith(f'{other.path}/')

    @property
    def folder(self) -> Path:
        """The folder of this machine where a run at this address is kept. None is in another."""
        above, _, name = f'{self.bucket}/{self.path}'.rpartition('/')
        return paths.cache_folder() / 'runs' / self.scheme / quote(above, safe='') / name


def parse(text: str, flag: str) -> Address | None:
    """The address that a user gives; None for a path on this machine.

    Raises:
      UserError: if it begins as an address and is none, or with another scheme.
    """
    scheme, separator, rest = text.partition('://')
    if not separator or scheme not in _SYSTEMS:
        paths.check_path(text, flag)
        return None
    bucket, _, path = rest.rstrip('/').partition('/')
    if not re.fullmatch(r'[a-z0-9][a-z0-9._-]+', bucket) or {'', '.', '..'} & {*path.split('/')}:
        raise UserError(
            f'{flag}={text} does not name a place in a bucket: give {scheme}://BUCKET/PATH.'
        )
    address = Address(scheme, bucket, path)
    paths.check_data_path(f'/{bucket}/{path}', flag)
    paths.check_path(str(address.folder), flag)  # its length
    return address


class Store(NamedTuple):
    """The requests to a place in a bucket. Names are relative to it.

    Each of them raises BucketError if the bucket refuses or does not answer.

    Attributes:
      address: the place.
      list: sizes in bytes of the objects whose names begin with a folder's name, by name.
      read: the content of an object; None if there is none.
      write: writes an object, or writes it again.
      create: writes an object unless there is one. Whether it did; of several at once only one.
      remove: removes an object, if there is one.
    """

    address: Address
    list: Callable[[str], dict[str, int]]
    read: Callable[[str], bytes | None]
    write: Callable[[str, bytes], None]
    create: Callable[[str, bytes], bool]
    remove: Callable[[str], None]


def open_store(address: Address) -> Store:
    """Prepares requests to a place in a bucket, and makes none.

    Raises:
      UserError: if the package for it is not installed.
    """
    module, name, settings = _SYSTEMS[address.scheme]
    package = module.partition('.')[0]
    try:
        create_system = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(
            f'{address.scheme}:// needs the package {package}: pip install {package}'
        ) from error
    logging.getLogger(package).setLevel(logging.CRITICAL)  # what it logs, it raises too
    ask = functools.partial(_ask, address)
    # It reads settings and credentials.
    system = ask(
        lambda: create_system(skip_instance_cache=True, use_listings_cache=False, **settings)
    )
    root = f'{address.bucket}/{address.path}/'.replace('//', '/')

    def list_(folder: str) -> dict[str, int]:
        found = ask(lambda: system.find(f'{root}{folder}', detail=True))
        return {
            name.removeprefix(root): int(entry['size'])
            for name, entry in found.items()
            if name.startswith(root) and entry['type'] == 'file'
        }

    def read(name: str) -> bytes | None:
        try:
            return ask(lambda: system.cat_file(root + name), FileNotFoundError)
        except FileNotFoundError:
            return None

    def create(name: str, content: bytes) -> bool:
        def attempt() -> bool:
            try:
                system.pipe_file(root + name, content, mode='create')
            except FileExistsError:
                return False
            except OSError as error:
                answer = getattr(error.__cause__, 'response', {})
                if answer.get('Error', {}).get('Code') in _TAKEN:
                    return False
                raise
            return True

        return ask(attempt)

    def remove(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            ask(lambda: system.rm_file(root + name), FileNotFoundError)

    return Store(
        address,
        list=list_,
        read=read,
        write=lambda name, content: ask(lambda: system.pipe_file(root + name, content)),
        create=create,
        remove=remove,
    )


@contextlib.contextmanager
def uploaded(address: Address) -> Iterator[Path]:
    """Yields the path of a file or a folder, to be written, and copies it when the block succeeds.

    Raises:
      UserError: if there is a folder already, or the bucket cannot be used.
    """
    above, _, name = address.path.rpartition('/')
    store = open_store(address._replace(path=above))
    if store.list(name).keys() - {name}:
        raise UserError(
            f'{address} holds other objects: choose another --output, or remove them with '
            f'`{_REMOVE[address.scheme]} {address}`.'
        )
    with tempfile.TemporaryDirectory(prefix='sagan_jax') as folder:
        output = Path(folder) / name
        yield output
        written = [path for path in (output, *output.rglob('*')) if path.is_file()]
        # Descriptions come last, so that who finds them finds all they describe.
        for is_last in (False, True):
            group = [path for path in written if (path.suffix == '.json') == is_last]
            each(lambda path: store.write(str(path.relative_to(folder)), path.read_bytes()), group)
    print(f'copied         to {address}')


def each(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Calls a function for each item in a few threads. Raises what the first failing one raises."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def _ask(
    address: Address, request: Callable[[], T], passed_on: type[Exception] | tuple[()] = ()
) -> T:
    """Makes a request; what the libraries raise becomes a BucketError, or is `passed_on`."""
    try:
        return request()
    except passed_on:
        raise
    except Exception as error:
        library = type(error).__module__.partition('.')[0]
        if not isinstance(error, OSError | ValueError) and library not in _LIBRARIES:
            raise
        raise _explained(address, error) from error


def _explained(address: Address, error: Exception) -> BucketError:
    scheme, bucket, _ = address
    said = ' '.join(str(error).split())
    is_refused = (
        isinstance(error, PermissionError)
        or str(getattr(error, 'code', '')) in ('401', '403')
        or said.startswith('Forbidden')
        or type(error).__module__.startswith('google.auth')
        or 'Credentials' in type(error).__name__
    )
    if isinstance(error, FileNotFoundError):
        create = f'create it with `{_CREATE[scheme]}{bucket}`, or check its name'
        return BucketError(f'There is no bucket {scheme}://{bucket}: {create}.', why='no bucket')
    why = f'{reason(error):.200}'
    if is_refused:
        return BucketError(f'{address} gives no access ({why}): {_ACCESS[scheme]}.', why=why)
    return BucketError(
        f'{address} does not answer ({why}): check the network and the address, and give the same '
        'command again.',
        RETRY,
        why,
    )

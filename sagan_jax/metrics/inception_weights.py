"""The constants of the 2015-12-05 Inception graph: where the file is, and what it holds."""

import gzip
import hashlib
import http.client
import io
import math
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.types_pb2 import DT_FLOAT
from tqdm import tqdm

from sagan_jax.errors import UserError
from sagan_jax.system.files import atomic_path

ARCHIVE = 'inception-2015-12-05.tgz'
GRAPH = 'classify_image_graph_def.pb'
URL = f'https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/{ARCHIVE}'
VARIABLE = 'SAGAN_JAX_INCEPTION'


def find(path: str | os.PathLike | None = None) -> Path:
    """The weights file: `path`, else what SAGAN_JAX_INCEPTION names, else the cached download.

    The cache is `sagan_jax` in XDG_CACHE_HOME or ~/.cache; there the SHA-256 of the file is written
    down beside it when it comes and compared from then on. Raises UserError when there is no such
    file, the download fails, or the file has changed.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        return _cached()
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f'There is no file of Inception weights at {path}: give the path of {ARCHIVE} or of '
            f'the {GRAPH} inside it.'
        )
    return path


def _cached() -> Path:
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'sagan_jax'
    path, record = folder / ARCHIVE, folder / f'{ARCHIVE}.sha256'
    if not path.is_file():
        _download(URL, path, record)
    with path.open('rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    if not record.is_file():  # put there by hand
        _write_record(record, sha256)
    elif record.read_text().split()[:1] != [sha256]:
        raise UserError(
            f'The Inception weights {path} are not what was downloaded (SHA-256 {sha256}, recorded '
            f'in {record.name} was another): delete both files to download them again.'
        )
    return path


def _download(url: str, path: Path, record: Path) -> None:
    digest, received = hashlib.sha256(), 0
    try:
        with atomic_path(path) as temporary:
            with (
                urllib.request.urlopen(url, timeout=60) as response,
                temporary.open('wb') as file,
                tqdm(desc=path.name, total=response.length, unit='B', unit_scale=True) as progress,
            ):
                while chunk := response.read(1 << 18):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    progress.update(len(chunk))
            if progress.total not in (None, received):
                raise ConnectionError(f'it broke off after {received} of {progress.total} bytes')
            _write_record(record, digest.hexdigest())
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'Could not download {url} ({error}): start again, or fetch it on another machine and '
            f'name the file in {VARIABLE}.'
        ) from error


def _write_record(record: Path, sha256: str) -> None:
    with atomic_path(record) as temporary:
        temporary.write_text(f'{sha256}  {ARCHIVE}\n')  # as sha256sum writes and checks it


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], str]:
    """The float32 constants that `shapes` names, and the SHA-256 of the graph that holds them.

    `path` is the graph or the archive around it, by content. Every name must be there, in its
    shape; a constant that looks like a weight of the network (its last name is that of one) but is
    not in `shapes` is an error too; all others are ignored. Raises UserError.
    """
    try:
        serialized = _graph_bytes(path)
        graph = GraphDef.FromString(serialized)
    except (OSError, EOFError, tarfile.TarError, zlib.error, DecodeError) as error:
        raise _unfit(path, f'cannot be read ({error})') from error

    kinds = {PurePosixPath(name).name for name in shapes}
    constants = {}
    for node in graph.node:
        if node.op != 'Const' or PurePosixPath(node.name).name not in kinds:
            continue
        if node.name not in shapes:
            raise _unfit(path, f'hold the weight {node.name}, which the network does not have')
        tensor = node.attr['value'].tensor
        shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
        if shape != shapes[node.name]:
            raise _unfit(path, f'hold {node.name} as {shape}, expected {shapes[node.name]}')
        values = _values(tensor, math.prod(shape))
        if values is None:
            raise _unfit(path, f'hold too few or no float32 values of {node.name}')
        constants[node.name] = values.reshape(shape)
    if missing := [name for name in shapes if name not in constants]:
        raise _unfit(path, f'lack {len(missing)} of {len(shapes)} constants, {missing[0]} first')
    return constants, hashlib.sha256(serialized).hexdigest()


def _graph_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b'\x1f\x8b'):
        return content
    # Decompressed as a whole, because only that compares the checksum at the end.
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content)), mode='r:') as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).name == GRAPH:
                return archive.extractfile(member).read()
    raise _unfit(path, f'hold no {GRAPH}')


def _values(tensor: TensorProto, count: int) -> np.ndarray | None:
    """Float32 [count] of a tensor as TensorFlow stores it, or None if it does not hold them."""
    if tensor.dtype != DT_FLOAT:
        return None
    if len(tensor.tensor_content) == 4 * count:
        return np.frombuffer(tensor.tensor_content, '<f4').astype(np.float32)
    if len(tensor.float_val) == 1:  # one value for all
        return np.full(count, tensor.float_val[0], np.float32)
    return np.array(tensor.float_val, np.float32) if len(tensor.float_val) == count else None


def _unfit(path: Path, problem: str) -> UserError:
    return UserError(
        f'The Inception weights {path} {problem}: fetch {ARCHIVE} again, or delete it from the '
        'cache to have it downloaded.'
    )

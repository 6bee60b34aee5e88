"""Finds and reads the constants of the 2015-12-05 Inception graph."""

import gzip
import hashlib
import io
import math
import os
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from sagan_jax.errors import UserError
from sagan_jax.system import download, paths, protobuf
from sagan_jax.system.files import atomic_path

ARCHIVE = 'inception-2015-12-05.tgz'
GRAPH = 'classify_image_graph_def.pb'
URL = f'https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/{ARCHIVE}'
VARIABLE = 'SAGAN_JAX_INCEPTION'

# From graph.proto, node_def.proto, attr_value.proto and tensor.proto in tensorflow/core/framework.
_MESSAGES = protobuf.declare("""
    message GraphDef { repeated NodeDef node = 1; }
    message NodeDef { string name = 1; string op = 2; repeated Attribute attr = 5; }
    message Attribute { string key = 1; AttrValue value = 2; }
    message AttrValue { TensorProto tensor = 8; }
    message TensorProto {
      int32 dtype = 1;
      TensorShapeProto tensor_shape = 2;
      bytes tensor_content = 4;
      repeated float float_val = 5;
    }
    message TensorShapeProto { repeated Dim dim = 2; }
    message Dim { int64 size = 1; }
""")
_DT_FLOAT = 1  # of DataType in types.proto


def find(path: str | os.PathLike | None = None) -> Path:
    """Finds the weights: `path`, or else the file that SAGAN_JAX_INCEPTION names, or a download.

    Downloads are cached in the folder `sagan_jax` of XDG_CACHE_HOME or ~/.cache. Their SHA-256 is
    recorded beside them and compared on each use.

    Raises:
      UserError: if there is no such file, the download fails, or the cached file has changed.
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
    folder = paths.cache_folder()
    path, record = folder / ARCHIVE, folder / f'{ARCHIVE}.sha256'
    if not path.is_file():
        download.download(
            URL,
            path,
            lambda sha256: _write_record(record, sha256),
            f'download it on another machine and set {VARIABLE} to the path of the file',
        )
    with path.open('rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    if not record.is_file():  # the user put the weights there
        _write_record(record, sha256)
    elif record.read_text().split()[:1] != [sha256]:
        raise UserError(
            f'The Inception weights {path} have changed (SHA-256 {sha256}, another one is recorded '
            f'in {record.name}): delete both files to download them again.'
        )
    return path


def _write_record(record: Path, sha256: str) -> None:
    with atomic_path(record) as temporary:
        temporary.write_text(f'{sha256}  {ARCHIVE}\n')  # the format of sha256sum


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], str]:
    """Reads the float32 constants that `shapes` names, and the SHA-256 of their graph.

    Args:
      path: the graph or the archive that contains it, recognised by content.
      shapes: the shape of each constant by name.

    Raises:
      UserError: if the file cannot be read, if a constant is missing or has another shape or dtype,
        or if there is another constant that looks like a weight, because the last part of its name
        is that of one in `shapes`.
    """
    try:
        serialized = _graph_bytes(path)
        graph = _MESSAGES['GraphDef'].FromString(serialized)
    except (OSError, EOFError, tarfile.TarError, zlib.error, DecodeError) as error:
        raise _unusable(path, f'cannot be read ({error})') from error

    kinds = {PurePosixPath(name).name for name in shapes}
    constants = {}
    for node in graph.node:
        if node.op != 'Const' or PurePosixPath(node.name).name not in kinds:
            continue
        if node.name not in shapes:
            raise _unusable(path, f'have the weight {node.name}, which the network does not have')
        attributes = {attribute.key: attribute.value for attribute in node.attr}
        tensor = attributes.get('value', _MESSAGES['AttrValue']()).tensor
        shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
        if shape != shapes[node.name]:
            raise _unusable(path, f'have {node.name} as {shape}, expected {shapes[node.name]}')
        values = _values(tensor, math.prod(shape))
        if values is None:
            raise _unusable(path, f'have too few or no float32 values of {node.name}')
        constants[node.name] = values.reshape(shape)
    if missing := [name for name in shapes if name not in constants]:
        raise _unusable(path, f'lack {len(missing)} of {len(shapes)} constants, {missing[0]} first')
    return constants, hashlib.sha256(serialized).hexdigest()


def _graph_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b'\x1f\x8b'):
        return content
    # Decompressed as a whole, because only that verifies the checksum at the end.
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content)), mode='r:') as archive:
        for member in archive:
            if not member.isfile() or PurePosixPath(member.name).name != GRAPH:
                continue
            if file := archive.extractfile(member):
                return file.read()
    raise _unusable(path, f'have no {GRAPH}')


def _values(tensor: Any, count: int) -> np.ndarray | None:
    """The values of a `TensorProto`, float32 [count]; None if they are missing."""
    if tensor.dtype != _DT_FLOAT:
        return None
    if len(tensor.tensor_content) == 4 * count:
        return np.frombuffer(tensor.tensor_content, '<f4').astype(np.float32)
    if len(tensor.float_val) == 1:  # one value for all
        return np.full(count, tensor.float_val[0], np.float32)
    return np.array(tensor.float_val, np.float32) if len(tensor.float_val) == count else None


def _unusable(path: Path, problem: str) -> UserError:
    return UserError(
        f'The Inception weights {path} {problem}: download {ARCHIVE} again; a cached file is '
        'downloaded again after you delete it.'
    )

"""Files of events, which TensorBoard shows: written without TensorFlow or PyTorch."""

import contextlib
import errno
import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
from PIL import Image

from sagan_jax.system import protobuf

# From tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto.
_MESSAGES = protobuf.declare("""
    message Event {
      double wall_time = 1;
      int64 step = 2;
      string file_version = 3;
      Summary summary = 5;
      SessionLog session_log = 7;
    }
    message SessionLog { int32 status = 1; }
    message Summary { repeated Value value = 1; }
    message Value { string tag = 1; float simple_value = 2; EncodedImage image = 4; }
    message EncodedImage {
      int32 height = 1;
      int32 width = 2;
      int32 colorspace = 3;
      bytes encoded_image_string = 4;
    }
""")
_START = 1  # of SessionLog.SessionStatus
_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), from the lowest bit to the highest


def scalars(values: Mapping[str, float]) -> dict[str, Any]:
    """The content of an event with a point of a curve for each value."""
    return {'summary': {'value': [{'tag': k, 'simple_value': v} for k, v in values.items()]}}


def image(name: str, pixels: np.ndarray) -> dict[str, Any]:
    """The content of an event with an image, uint8 [H, W, 3]."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format='PNG')
    height, width, channels = pixels.shape
    fields = {'height': height, 'width': width, 'colorspace': channels}
    shown = fields | {'encoded_image_string': encoded.getvalue()}
    return {'summary': {'value': [{'tag': name, 'image': shown}]}}


def restart() -> dict[str, Any]:
    """The content of an event that makes TensorBoard drop all earlier events of its step or later.

    A killed run may have written events of steps that are repeated when it resumes.
    """
    return {'session_log': {'status': _START}}


class EventFile:
    """A new event file. Each event is in the file when `add` returns.

    Args:
      folder: created if it does not exist.

    Raises:
      OSError: if the file cannot be created or written, here and in `add`. Its last event may then
        be cut short, and a reader would find none after it.
    """

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self._file = _create(f'{folder}/events.out.tfevents.{int(time.time())}.{gethostname()}')
        self.add(0, {'file_version': 'brain.Event:2'})

    def add(self, step: int, content: Mapping[str, Any]) -> None:
        """Writes an event; `content` is that of `scalars`, `image` or `restart`."""
        event = _MESSAGES['Event'](wall_time=time.time(), step=step, **content)
        remaining = record(event.SerializeToString())
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def close(self) -> None:
        self._file.close()


def record(content: bytes) -> bytes:
    """A record of TensorFlow's: the length, its checksum, the content, its checksum."""
    length = struct.pack('<Q', len(content))
    return length + _checksum(length) + content + _checksum(content)


def _create(path: str) -> io.FileIO:
    """Creates a file. A second one of the same second has a number in its name."""
    for suffix in ('', *(f'.{number}' for number in range(1, 1000))):
        with contextlib.suppress(FileExistsError):
            return open(path + suffix, 'xb', buffering=0)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, masked as TensorFlow's records have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> tuple[int, ...]:
    """The remainder of each byte."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _table()

"""Event files of numbers by epoch, which TensorBoard shows; written without it or TensorFlow.

Called by ``finetune_command``. An event file is a row of records: a length and bytes, each with a
checksum after it (TensorFlow's ``record_writer.h``). The bytes are a protocol buffer (``Event`` of
``event.proto``) with fields ``wall_time`` 1, ``step`` 2, ``file_version`` 3, and ``summary`` 5,
whose values (1) have a ``tag`` 1 and a ``simple_value`` 2.

Every epoch has a file of its own: it is complete if it exists, none is written to twice, and
TensorBoard, which reads the files of a folder in order of their names, shows it at once.
"""

import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.files import remove_leftovers, write_bytes

_PREFIX: Final = "events.out.tfevents."
_VERSION: Final = b"brain.Event:2"
# How a protocol buffer encodes a field's value.
_VARINT: Final = 0
_EIGHT_BYTES: Final = 1
_LENGTH: Final = 2
_FOUR_BYTES: Final = 5
# Castagnoli's polynomial, its bits reversed, and what TensorFlow adds to a rotated checksum.
_POLYNOMIAL: Final = 0x82F63B78
_MASK: Final = 0xA282EAD8


def keep(folder: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Make a folder hold the numbers of these epochs and of no others.

    Epochs that have a file keep it, so that nothing is there twice, whenever training was killed.

    Args:
        folder: Where event files go.
        epochs: Numbers by name, with the number of the ``epoch``; None is left out.
    """
    wanted = {folder / f"{_PREFIX}{row['epoch']:06}": row for row in epochs}
    remove_leftovers(folder)
    for path in folder.glob(f"{_PREFIX}*"):
        if path not in wanted:
            path.unlink()
    for path, row in wanted.items():
        if not path.exists():
            values = {name: value for name, value in row.items() if name != "epoch"}
            write_bytes(path, _file(row["epoch"], values, time.time()))


def _file(step: int, values: Mapping[str, float | None], wall_time: float) -> bytes:
    """Return an event file of the values of one step."""
    summary = b"".join(
        _field(1, _LENGTH, _sized(_scalar(tag, value)))
        for tag, value in values.items()
        if value is not None
    )
    begun = _field(1, _EIGHT_BYTES, struct.pack("<d", wall_time))
    first = begun + _field(3, _LENGTH, _sized(_VERSION))
    event = begun + _field(2, _VARINT, _varint(step)) + _field(5, _LENGTH, _sized(summary))
    return _record(first) + _record(event)


def _scalar(tag: str, value: float) -> bytes:
    number = struct.pack("<f", value)
    return _field(1, _LENGTH, _sized(tag.encode())) + _field(2, _FOUR_BYTES, number)


def _field(number: int, kind: int, encoded: bytes) -> bytes:
    return _varint(number << 3 | kind) + encoded


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Return a number of 0 or more in groups of seven bits, the lowest first."""
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """Return the CRC-32C of some bytes, rotated and masked as TensorFlow has it."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = _TABLE[(remainder ^ byte) & 0xFF] ^ remainder >> 8
    crc = remainder ^ 0xFFFFFFFF
    return struct.pack("<I", (crc >> 15 | crc << 17 & 0xFFFFFFFF) + _MASK & 0xFFFFFFFF)


def _remainders() -> Iterable[int]:
    """Yield, for every byte, its remainder modulo the polynomial."""
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (_POLYNOMIAL if remainder & 1 else 0)
        yield remainder


_TABLE: Final = tuple(_remainders())

"""Weights as PyTorch saved them before its release 1.6, read without PyTorch.

Such a file is five pickles (a magic number, the protocol, facts of the machine, the state dict,
the keys of the storages), then each storage in the order of the keys: its number of values as
int64, and the values (``_legacy_save`` in PyTorch's ``torch/serialization.py``). A tensor of the
state dict is a view of its storage: where it begins, its shape, and its strides, without which a
tensor that was transposed before it was saved is read in the wrong order.

A pickle makes its reader call whatever it names. Here four names have a meaning, which is that of a
value; every other name is refused, and so is every opcode that such a file does not need.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from pipeline.errors import PipelineError, WeightsUnavailableError
from pipeline.files.arrays import AnyArray

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
)
_OPCODES: Final = frozenset(
    {
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BINUNICODE"),
        *("BININT", "BININT1", "BININT2", "LONG1"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    }
)
# EfficientNet-Lite2's state dict takes 14,000.
_MAX_OPCODES: Final = 1 << 15
_MAX_AXES: Final = 8


class _Storage(NamedTuple):
    """What a pickle says of a storage: the name of its dtype, its key, its number of values."""

    kind: str
    key: str
    length: int


class _View(NamedTuple):
    """What a pickle says of a tensor, of which only the storage was looked at."""

    storage: _Storage
    offset: object
    shape: object
    strides: object


class _AsView:
    """What ``torch._utils._rebuild_tensor_v2`` stands for; no attribute of it can be set."""

    __slots__ = ()

    def __call__(self, storage: object, offset: object, shape: object, strides: object,
                 *_: object) -> _View:  # fmt: skip
        if not isinstance(storage, _Storage):
            raise _refused("the storage of a tensor", f"a {type(storage).__name__}")
        return _View(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Makes values alone: a name stands for one of four things, of which none can be changed."""

    def find_class(self, module: str, name: str) -> object:
        """Return what a name stands for, importing nothing.

        Raises:
            WeightsUnavailableError: The name is none of the four.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _AsView()
        if module == "torch" and name in _DTYPES:
            return name
        raise _refused("tensors, and no name beyond those of tensors", f"the name {module}.{name}")

    def persistent_load(self, pid: object) -> _Storage:
        """Return what is said of a storage.

        Raises:
            WeightsUnavailableError: It is not said as PyTorch does, or it is a part of another.
        """
        match pid:
            case ("storage", str(kind), str(key), str(), int(length), None) if kind in _DTYPES:
                return _Storage(kind, key, length)
        raise _refused("storages of float32 or int64 values", "something else")


def read(content: bytes) -> dict[str, AnyArray]:
    """Read the state dict of a file.

    Whatever the bytes are, no code runs, and no more memory is taken than a few times their number;
    how long a pickle that was made to take long takes is not bounded.

    Args:
        content: The bytes of the file.

    Returns:
        float32 and int64 arrays by the names of the tensors, in C order, each of a storage of its
        own.

    Raises:
        WeightsUnavailableError: The file is of another form, cut short or damaged, names something
            else than tensors, or claims more values than it holds.
    """
    stream = io.BytesIO(content)
    if _unpickled(stream) != _MAGIC or _unpickled(stream) != _PROTOCOL:
        raise _refused(
            "weights that PyTorch saved in its form before release 1.6", "another magic number"
        )
    machine = _unpickled(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _refused("little-endian values", "another order of bytes")
    views = _views(_unpickled(stream))
    keys = _unpickled(stream)
    storages = _storages(content, stream.tell(), keys, views)
    return {name: _tensor(name, view, storages) for name, view in views.items()}


def _refused(expected: str, received: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(f"expected {expected}. Received {received}.")


def _unpickled(stream: io.BytesIO) -> object:
    """Return the value of the next pickle."""
    begin = stream.tell()
    try:
        _require_plain(stream)
        stream.seek(begin)
        return _Unpickler(stream).load()
    except PipelineError:
        raise
    except Exception as error:  # whatever the opcode at hand raises
        cause = " ".join(str(error).split())[:200]
        raise _refused("a whole file", f"one that is cut short or damaged: {cause}") from error


def _require_plain(stream: io.BytesIO) -> None:
    """Refuse a pickle of more than values, and one that asks for a memo beyond its own size.

    The unpickler makes room for as many entries as the largest number says, of 4 bytes.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name not in _OPCODES:
            raise _refused("a pickle of values", f"the opcode {opcode.name}")
        is_memo = opcode.name in ("BINPUT", "LONG_BINPUT")
        if number > _MAX_OPCODES or (is_memo and int(argument or 0) > _MAX_OPCODES):
            raise _refused(f"at most {_MAX_OPCODES:,} values", "more")


def _views(state: object) -> dict[str, _View]:
    """Return what a state dict says of each tensor.

    Raises:
        WeightsUnavailableError: It holds something else, or two tensors of one storage.
    """
    if not isinstance(state, dict):
        raise _refused("a state dict", f"a {type(state).__name__}")
    views: dict[str, _View] = {}
    used: set[str] = set()
    # The dictionary's own method, which a pickle cannot have covered with an attribute.
    for name, view in dict.items(state):
        if not isinstance(name, str) or not isinstance(view, _View):
            raise _refused("tensors by name", f"a {type(view).__name__}")
        # Each value once: a few bytes of pickle could otherwise ask for any number of copies.
        if view.storage.key in used:
            raise _refused("a storage for every tensor", f"the one of {name} twice")
        used.add(view.storage.key)
        views[name] = view
    return views


def _storages(
    content: bytes, begin: int, keys: object, views: Mapping[str, _View]
) -> dict[str, AnyArray]:
    """Return the values of each storage by its key, as views of the file's bytes.

    Raises:
        WeightsUnavailableError: Storages are missing, cut short, or more than the tensors have.
    """
    declared = {view.storage.key: view.storage for view in views.values()}
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(declared)
    ):
        raise _refused("the storages of the tensors, once each", "others")
    found: dict[str, AnyArray] = {}
    for key in keys:
        storage, values = declared[key], begin + 8
        dtype = _DTYPES[storage.kind]
        count = int.from_bytes(content[begin:values], "little")
        begin = values + count * dtype.itemsize
        if count != storage.length or begin > len(content):
            raise _refused(f"{storage.length:,} values of a tensor", "a file that is cut short")
        found[key] = np.frombuffer(content, dtype, count, values)
    if begin != len(content):
        raise _refused("nothing behind the values", f"{len(content) - begin:,} bytes")
    return found


def _tensor(name: str, view: _View, storages: Mapping[str, AnyArray]) -> AnyArray:
    """Return a copy of the values of a tensor, in the order that its strides say.

    Raises:
        WeightsUnavailableError: It reaches beyond its storage, or has more values.
    """
    values = storages[view.storage.key]
    match view:
        case _View(_, int(offset), tuple(shape), tuple(strides)):
            numbers = (offset, *shape, *strides)
        case _:
            raise _refused(f"an offset, a shape and strides of {name}", "something else")
    fits = (
        len(shape) == len(strides) <= _MAX_AXES
        and all(type(number) is int and 0 <= number <= values.size for number in numbers)
        and 0 < math.prod(shape) <= values.size
        and offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        < values.size
    )
    if not fits:
        raise _refused(f"{name} within its {values.size:,} values", "a view beyond them")
    steps = [stride * values.itemsize for stride in strides]
    return np.array(as_strided(values[offset:], shape, steps), order="C")

"""A writer of weights in PyTorch's form before release 1.6, for tests; it needs no PyTorch."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

MAGIC: Final = 0x1950A86A20F9469CFC6C
_KINDS: Final = {"float32": "FloatStorage", "int64": "LongStorage"}


@dataclass(frozen=True)
class Saved:
    """A tensor as a file has it: a storage, and how the tensor is seen in it."""

    storage: np.ndarray
    shape: Sequence[int]
    strides: Sequence[int]
    offset: int = 0


def as_saved(values: np.ndarray) -> Saved:
    """Return an array, whose axes may be permuted, as PyTorch keeps it: in the order of memory."""
    steps = [step // values.itemsize for step in values.strides]
    return Saved(values.ravel(order="K"), values.shape, steps)


def plain(value: Any) -> bytes:
    """Return what pushes a value, without the opcodes around it."""
    return pickle.dumps(value, protocol=2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    """Return what pushes whatever a name stands for."""
    return f"c{module}\n{attribute}\n".encode()


EMPTY: Final = name("collections", "OrderedDict") + b")R"


def tensor(key: str, saved: Saved) -> bytes:
    """Return what pushes a tensor."""
    kind = _KINDS[str(saved.storage.dtype)]
    storage = b"(" + plain("storage") + name("torch", kind)
    storage += plain(key) + plain("cpu") + plain(len(saved.storage)) + b"NtQ"
    view = plain(saved.offset) + plain(tuple(saved.shape)) + plain(tuple(saved.strides))
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + view + b"\x89" + EMPTY + b"tR"
    )


def state_dict(tensors: Mapping[str, bytes]) -> bytes:
    """Return the pickle of a state dict, with the versions of its modules as an attribute."""
    items = b"".join(plain(key) + item for key, item in tensors.items())
    versions = b"}" + plain("_metadata") + EMPTY + b"s"
    return b"\x80\x02" + EMPTY + b"(" + items + b"u" + versions + b"b."


def content(
    tensors: Mapping[str, Saved],
    *,
    state: bytes | None = None,
    machine: Any = None,
    keys: Any = None,
) -> bytes:
    """Return the bytes of a file.

    Args:
        tensors: Tensors by name, each of a storage of its own.
        state: The pickle of the state dict, where it is to be another.
        machine: The facts of the machine, where they are to be others.
        keys: The keys of the storages, where they are to be others.
    """
    named = {str(number): saved for number, saved in enumerate(tensors.values(), start=1000)}
    if state is None:
        parts = zip(tensors, named.items(), strict=True)
        state = state_dict({key: tensor(*item) for key, item in parts})
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}
    file = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2)
    file += pickle.dumps(facts if machine is None else machine, 2) + state
    file += pickle.dumps(list(named) if keys is None else keys, 2)
    for saved in named.values():
        file += len(saved.storage).to_bytes(8, "little") + saved.storage.tobytes()
    return file

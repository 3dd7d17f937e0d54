"""PyTorch's old form of weights: tensors as they were, and nothing else that a pickle can say."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch_files
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import EMPTY, Saved, as_saved, content, name, plain

from pipeline.backbones import torch_file
from pipeline.errors import WeightsUnavailableError

KERNEL = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
TENSORS = {
    "conv.weight": as_saved(KERNEL.transpose(3, 2, 0, 1)),
    "bn.bias": as_saved(np.arange(5, dtype=np.float32)),
    "bn.num_batches_tracked": Saved(np.array([7]), (), ()),
}
FILE = content(TENSORS)


def refusal(file: bytes) -> str:
    with pytest.raises(WeightsUnavailableError) as caught:
        torch_file.read(file)
    return caught.value.message


def with_state(state: bytes) -> bytes:
    return content({}, state=b"\x80\x02" + state + b".")


def test_tensors_come_back_in_c_order() -> None:
    found = torch_file.read(FILE)
    assert list(found) == list(TENSORS)
    np.testing.assert_array_equal(found["conv.weight"], KERNEL.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found["bn.bias"], np.arange(5))
    assert found["bn.num_batches_tracked"].shape == ()
    assert found["bn.num_batches_tracked"] == 7
    assert [array.dtype for array in found.values()] == [np.float32, np.float32, np.int64]
    assert all(array.flags.c_contiguous and array.flags.owndata for array in found.values())


@pytest.mark.parametrize("axes", list(itertools.permutations(range(4))))
def test_strides_say_the_order_of_the_values(axes: tuple[int, ...]) -> None:
    permuted = KERNEL.transpose(axes)
    found = torch_file.read(content({"conv.weight": as_saved(permuted)}))["conv.weight"]
    np.testing.assert_array_equal(found, permuted)
    # What a reader that ignores the strides would take for it.
    flat = np.arange(KERNEL.size, dtype=np.float32).reshape(permuted.shape)
    assert np.array_equal(found, flat) == (axes == (0, 1, 2, 3))


def test_a_view_begins_at_its_offset() -> None:
    saved = Saved(np.arange(10, dtype=np.float32), (2, 3), (1, 2), offset=3)
    found = torch_file.read(content({"part": saved}))["part"]
    np.testing.assert_array_equal(found, [[3, 5, 7], [4, 6, 8]])


# What a pickle can say beyond tensors


@pytest.mark.parametrize("place", range(5))
def test_what_a_pickle_names_is_never_called(place: int, tmp_path: Path) -> None:
    path = tmp_path / "called"
    call = (
        name("pathlib", "Path.touch") + name("pathlib", "Path") + plain(str(path)) + b"\x85R\x85R"
    )
    hostile = b"\x80\x02" + call + b"."
    # It does what it says for a reader that lets it.
    pickle.loads(hostile.replace(b"\x80\x02", b"\x80\x04"))
    path.unlink()
    parts = [pickle.dumps(torch_files.MAGIC, 2), pickle.dumps(1001, 2)]
    parts += [pickle.dumps({"little_endian": True}, 2), torch_files.state_dict({})]
    parts = [*parts, pickle.dumps([], 2)]
    assert torch_file.read(b"".join(parts)) == {}
    parts[place] = hostile
    assert "the name pathlib.Path" in refusal(b"".join(parts))
    assert not path.exists()


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch", "HalfStorage"),
        ("torch", "FloatStorage.from_file"),
        ("torch._utils", "_rebuild_parameter"),
        ("collections", "namedtuple"),
        ("collections.abc", "OrderedDict"),
    ],
)
def test_names_beyond_the_four_are_refused(module: str, attribute: str) -> None:
    assert f"the name {module}.{attribute}" in refusal(with_state(name(module, attribute)))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (plain("os") + plain("system") + b"\x93", "STACK_GLOBAL"),
        (b"(ios\nsystem\n", "INST"),
        (b"(" + EMPTY + b"o", "OBJ"),
        (EMPTY + b")\x81", "NEWOBJ"),
        (b"\x82\x01", "EXT1"),
        (b"\x8e" + (1 << 40).to_bytes(8, "little"), "damaged"),
        (b"Nr\xff\xff\xff\xff", "at most"),
        (b"N0" * 10, "POP"),
        (b"]" * (1 << 16), "at most"),
    ],
    ids=["stack global", "inst", "obj", "newobj", "extension", "bytes", "memo", "pop", "values"],
)
def test_opcodes_that_tensors_do_not_need_are_refused(state: bytes, says: str) -> None:
    assert says in refusal(with_state(state))


@pytest.mark.parametrize(
    "thing",
    [
        name("collections", "OrderedDict"),
        name("torch._utils", "_rebuild_tensor_v2"),
        name("torch", "FloatStorage"),
        torch_files.tensor("1000", TENSORS["bn.bias"]),
    ],
    ids=["dictionary", "tensor", "storage", "view"],
)
@pytest.mark.parametrize("slots", [False, True])
def test_a_pickle_changes_nothing_of_what_its_names_stand_for(thing: bytes, slots: bool) -> None:
    attributes = b"}" + plain("__call__") + plain("any") + b"s"
    state = b"N" + attributes + b"\x86" if slots else attributes
    assert "damaged" in refusal(with_state(thing + state + b"b"))
    assert set(torch_file.read(FILE)) == set(TENSORS)


def test_attributes_of_the_state_dict_do_not_cover_its_items() -> None:
    items = EMPTY + b"(" + plain("a") + torch_files.tensor("1000", TENSORS["bn.bias"]) + b"u"
    covered = items + b"}" + plain("items") + name("collections", "OrderedDict") + b"sb"
    file = content({"a": TENSORS["bn.bias"]}, state=b"\x80\x02" + covered + b".")
    np.testing.assert_array_equal(torch_file.read(file)["a"], np.arange(5))


@pytest.mark.parametrize(
    "state",
    [plain([]), plain({"a": 1}), plain({1: 2}), plain({"a": ("storage",)}), EMPTY + b"Q"],
    ids=["list", "number", "no name", "tuple", "no storage"],
)
def test_what_is_no_state_dict_is_refused(state: bytes) -> None:
    assert "expected" in refusal(with_state(state))


# Damage


def test_a_file_cut_short_anywhere_is_refused() -> None:
    for length in range(len(FILE)):
        refusal(FILE[:length])


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_gives_tensors_or_a_refusal(mask: int) -> None:
    for place in range(len(FILE)):
        damaged = bytearray(FILE)
        damaged[place] ^= mask
        try:
            found = torch_file.read(bytes(damaged))
        except WeightsUnavailableError:
            continue
        assert sum(array.size for array in found.values()) <= KERNEL.size + 6


@pytest.mark.slow
@given(st.binary(max_size=200), st.integers(0, len(FILE)))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_tensors_or_a_refusal(noise: bytes, place: int) -> None:
    try:
        torch_file.read(FILE[:place] + noise + FILE[place + len(noise) :])
    except WeightsUnavailableError as error:
        assert "expected" in error.message


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((11,), (1,), 0),
        ((10,), (1,), 1),
        ((4,), (3,), 1),
        ((2, 5), (6, 1), 0),
        ((1 << 40,), (0,), 0),
        ((5, 3), (0, 1), 0),
        ((10,), (-1,), 9),
        ((10,), (1,), -1),
        ((0,), (1,), 0),
        ((1,), (1 << 62,), 0),
        ((2,), (1, 1), 0),
        ((1,) * 9, (1,) * 9, 0),
        (("1",), (1,), 0),
        ((True,), (1,), 0),
    ],
)
def test_views_beyond_their_values_are_refused(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    saved = Saved(np.arange(10, dtype=np.float32), shape, strides, offset)
    assert "expected part within its 10 values" in refusal(content({"part": saved}))


def test_a_storage_is_of_one_tensor_and_a_tensor_of_one_storage() -> None:
    tensors = {"a": TENSORS["bn.bias"]}
    twice = dict.fromkeys("ab", torch_files.tensor("1000", TENSORS["bn.bias"]))
    assert "the one of b twice" in refusal(content(tensors, state=torch_files.state_dict(twice)))
    for keys in (["1000", "1000"], [], ["other"], [1000], [None], "1000", ()):
        assert "the storages of the tensors" in refusal(content(tensors, keys=keys))
    assert "1 bytes" in refusal(FILE + b"\0")
    longer = Saved(np.zeros(6, np.float32), (5,), (1,))
    state = torch_files.state_dict({"a": torch_files.tensor("1000", TENSORS["bn.bias"])})
    assert "5 values" in refusal(content({"a": longer}, state=state))


def test_other_forms_are_refused() -> None:
    assert "before release 1.6" in refusal(pickle.dumps(1, 2) + FILE[15:])
    assert "before release 1.6" in refusal(FILE.replace(pickle.dumps(1001, 2), pickle.dumps(9, 2)))
    assert "little-endian" in refusal(content(TENSORS, machine={"little_endian": False}))
    assert "little-endian" in refusal(content(TENSORS, machine=[]))
    for other in (b"", b"PK\x03\x04" + bytes(100), b"\x89HDF\r\n\x1a\n" + bytes(100)):
        assert "expected a whole file" in refusal(other)

"""The verdict on an extraction, and the clock behind it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, write_classes

from pipeline.engines.clock import Clock, Part
from pipeline.engines.encoder import Pending
from pipeline.engines.queue import EncodingQueue, EncodingRow
from pipeline.extract.doctor import Setting, diagnose
from pipeline.images import decoder
from pipeline.store import shard

Command = Callable[..., tuple[int, dict[str, Any]]]


def setting(**changes: Any) -> Setting:
    values: dict[str, Any] = {
        "workers": 4,
        "processors": 4,
        "engine": "openvino",
        "best_engine": "openvino",
        "on_gpu": False,
        "precision": "float32",
        "faster_precision": None,
    }
    return Setting(**{**values, **changes})


def clock(bound: Part, **changes: float) -> Clock:
    spent = Clock(seconds=10.0, encoding=5.0, reading=20.0, computing=18.0, writing=1.0)
    spent.waited[bound] = 8.0
    for name, value in changes.items():
        setattr(spent, name, value)
    return spent


def test_the_shares_are_of_the_whole_time() -> None:
    found = diagnose(clock("encode"), setting())
    assert found is not None
    assert found["busy"] == {"decode": 0.5, "encode": 0.5, "write": 0.1}


@pytest.mark.parametrize(
    ("spent", "changes", "advice"),
    [
        (clock("decode"), {"workers": 2}, "--workers 4"),
        (clock("decode"), {}, "smaller copies"),
        (clock("decode", computing=5.0), {}, "--workers 8"),
        (clock("encode"), {"engine": "keras"}, "--engine openvino"),
        (clock("encode"), {"faster_precision": "bfloat16"}, "--precision bfloat16"),
        (clock("encode"), {}, "a machine with a GPU"),
        (clock("encode"), {"on_gpu": True}, "--image-size"),
        (clock("write"), {}, "--store on a faster disk"),
    ],
)
def test_the_one_setting_to_change(spent: Clock, changes: dict[str, Any], advice: str) -> None:
    found = diagnose(spent, setting(**changes))
    assert found is not None
    assert spent.waited[found["bound"]] == 8.0
    assert advice in found["advice"]


def test_nothing_encoded_has_no_verdict() -> None:
    assert diagnose(Clock(seconds=1.0), setting()) is None


# With each part made slow in turn


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["decode", "encode", "write"])
def test_the_slow_part_is_named(
    slow: str,
    command: Command,
    tmp_path: Path,
    fake_network: FakeEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", {"cat": 24, "dog": 24})

    def slowed(original: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            time.sleep(seconds)
            return original(*arguments, **more)

        return call

    if slow == "decode":
        monkeypatch.setattr(decoder, "decode", slowed(decoder.decode, 0.03))
    elif slow == "encode":
        monkeypatch.setattr(FakeEncoder, "__call__", slowed(FakeEncoder.__call__, 0.1))
    else:
        monkeypatch.setattr(shard, "write", slowed(shard.write, 0.2))
        monkeypatch.setattr("pipeline.store.writer.FLUSH_SECONDS", 0.0)
        monkeypatch.setattr(
            "pipeline.store.writer.ShardWriter._is_due", lambda writer: bool(writer._blocks)
        )
    _, result = command("extract", "data", "--weights", "random", "--image-size", 32, "--store",
                        "store", "--batch-size", 4, "--workers", 1)  # fmt: skip
    assert result["bottleneck"]["bound"] == slow
    assert result["bottleneck"]["busy"][slow] == max(result["bottleneck"]["busy"].values())
    assert set(result["bottleneck"]["busy"]) == {"decode", "encode", "write"}


def test_a_rerun_has_no_bottleneck(
    command: Command,
    tmp_path: Path,
    fake_network: FakeEncoder,
    age: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", {"cat": 2, "dog": 2})
    arguments = ("extract", "data", "--weights", "random", "--image-size", 32, "--store", "s")
    command(*arguments)
    assert command(*arguments)[1]["bottleneck"] is None


# The queue


class Background(FakeEncoder):
    """An encoder whose results are fetched late, and only in order."""

    def submit(self, images: np.ndarray) -> Pending:
        kept = images.copy()
        self.under_way = getattr(self, "under_way", 0) + 1
        assert self.under_way <= 2

        def collect(timeout: float | None = None) -> np.ndarray:
            self.under_way -= 1
            return self(kept)

        return collect


def row(number: int) -> EncodingRow:
    return EncodingRow(number, f"{number:064}", "", np.full((32, 32, 3), number, np.uint8))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40, 43])
def test_rows_come_out_in_order_each_with_its_features(count: int) -> None:
    encoder = Background()
    made: list[tuple[EncodingRow, np.ndarray]] = []
    with EncodingQueue(
        encoder,
        deliver=lambda rows, features: made.extend(zip(rows, features, strict=True)),
        clock=Clock(),
    ) as queue:
        for number in range(count):
            queue.add(row(number))
            if number % 11 == 5:
                queue.drain()
    assert [item.index for item, _ in made] == list(range(count))
    for item, features in made:
        np.testing.assert_array_equal(features, encoder(item.pixels[np.newaxis])[0])

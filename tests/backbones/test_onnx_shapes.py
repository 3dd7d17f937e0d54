"""What a network in ONNX may take and give, told from what it declares."""

from pathlib import Path

import pytest

from pipeline.backbones.onnx_shapes import (
    Declared,
    Features,
    Side,
    channels_first,
    chosen,
    features,
    require_size,
)
from pipeline.errors import ConfigError

FILE = Path("own.onnx")


def of(*shape: Side, kind: str = "float32", name: str = "x") -> Declared:
    return Declared(name, kind, shape)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        (("n", 3, 224, 224), True),
        (("n", 224, 224, 3), False),
        (("", 3, "", ""), True),
        (("", "", "", 3), False),
        (("batch_size", "num_channels", "height", "width"), True),
        (("batch", "height", "width", "channels"), False),
        (("n", 3, 3, 64), True),
    ],
)
def test_the_order_of_channels(shape: tuple[Side, ...], first: bool) -> None:
    assert channels_first(FILE, [of(*shape)]) is first


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        ([], "image encoder alone"),
        ([of("n", 3, 8, 8), of("n", 7, name="input_ids")], "image encoder alone"),
        ([of("n", 3, 8, 8, kind="float16")], "float32"),
        ([of("n", 3, 8, 8, kind="uint8")], "float32"),
        ([of("n", 8)], "a batch of images"),
        ([Declared("x", "float32", None)], "a batch of images"),
        ([of(1, 3, 8, 8)], "fixed at 1.*dynamic_axes={'x': {0: 'batch'}}"),
        ([of("n", 1, 8, 8)], "3 channels"),
        ([of("n", 8, 8, 4)], "3 channels"),
        ([of("n", "a", "b", "c")], "that axis fixed"),
        ([of("n", 3, 8, 3)], "3 channels"),
    ],
)
def test_inputs_that_are_no_images_are_refused(inputs: list[Declared], hint: str) -> None:
    with pytest.raises(ConfigError, match=r"own\.onnx: expected features of one input") as caught:
        channels_first(FILE, inputs)
    caught.match(hint)


@pytest.mark.parametrize("shape", [("n", 3, 64, 64), ("n", "c", "h", "w"), ("n", 64, "", 3)])
def test_a_size_that_fits(shape: tuple[Side, ...]) -> None:
    require_size(FILE, of(*shape), 64)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        (("n", 3, 96, 96), "Use --image-size 96"),
        (("n", 96, 96, 3), "Use --image-size 96"),
        (("n", 3, 64, 96), "squares of 32"),
        (("n", 3, 28, 28), "squares of 32"),
    ],
)
def test_another_size_is_refused(shape: tuple[Side, ...], hint: str) -> None:
    with pytest.raises(ConfigError, match="64 x 64 pixels") as caught:
        require_size(FILE, of(*shape), 64)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "first", "expected"),
    [
        (("n", 768), True, Features(768, None)),
        (("n", 512, 7, 7), False, Features(512, 1)),
        (("n", 7, 7, 512), True, Features(512, 3)),
        (("n", 512, "h", "w"), False, Features(512, 1)),
        (("n", "", "", 512), True, Features(512, 3)),
        (("n", 512, 1, 1), True, Features(512, 1)),
        (("n", 1, 1, 512), True, Features(512, 3)),
        (("n", 7, 7, 7), True, Features(7, 1)),
        (("n", 7, 7, 7), False, Features(7, 3)),
    ],
)
def test_where_features_are(shape: tuple[Side, ...], first: bool, expected: Features) -> None:
    output = of(*shape)
    assert features(FILE, output, [output], first=first) == expected


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        (of("n", "dim"), "fixed number of features"),
        (of("n", ""), "fixed number of features"),
        (of("n", "c", "h", "w"), "must be fixed"),
        (of("n", 512, 7, "w"), "must be fixed"),
        (of("n", 50, 768), "rows of tokens"),
        (of(768), "last feature map"),
        (of(1, 768), "fixed at 1"),
        (of("n", 768, kind="float16"), "float32"),
        (Declared("x", "float32", None), "infer_shapes"),
    ],
)
def test_outputs_without_features_are_refused(output: Declared, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"\(n, dim\) or \(n, dim, h, w\)") as caught:
        features(FILE, output, [output], first=True)
    assert hint in caught.value.hint


def test_the_error_names_outputs_that_could_be_chosen() -> None:
    tokens = of("n", 50, 768, name="last_hidden_state")
    row, other = of("n", 768, name="pooler_output"), of("n", "t", 9, name="states")
    with pytest.raises(ConfigError) as caught:
        features(FILE, tokens, [tokens, row, other], first=True)
    assert caught.value.hint.endswith("Choose one: --output pooler_output.")
    with pytest.raises(ConfigError, match=r"2 outputs, last_hidden_state \(n, 50, 768\)") as caught:
        chosen(FILE, [tokens, row], None)
    assert caught.value.hint == "Choose one: --output pooler_output."
    with pytest.raises(ConfigError) as caught:
        chosen(FILE, [tokens, other], None)
    assert "pooled features as an output" in caught.value.hint


def test_an_output_is_chosen_by_name() -> None:
    outputs = [of("n", 4, name="a"), of("n", 4, name="b")]
    assert chosen(FILE, outputs, "b") is outputs[1]
    assert chosen(FILE, outputs[:1], None) is outputs[0]
    with pytest.raises(ConfigError, match=r"Unknown output 'c' in own\.onnx") as caught:
        chosen(FILE, outputs, "c")
    assert "Valid names: a, b" in caught.value.hint


def test_sides_without_a_short_name_are_not_listed() -> None:
    assert str(of("batch", "", "floor(floor(height/2 - 1/2)/2) + 1", 7)) == "x (batch, ?, ?, 7)"

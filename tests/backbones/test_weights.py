"""Weights as arrays: random draws, every file form, refusals and digests."""

import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backbones import weights, weights_file
from pipeline.backbones.variables import Variable, variables_of
from pipeline.errors import WeightsUnavailableError
from tests import weight_files
from tests.weight_files import TOP, WRITERS

NETWORK = weight_files.small_network()
ARRAYS = weight_files.values_of([*NETWORK, *TOP])
OWN = {variable.path: ARRAYS[variable.path] for variable in NETWORK}
FORMS = sorted(WRITERS)

# Keras reads its variables in a way that NumPy 2 deprecates.
from_keras = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write(folder: Path, form: str, variables: list[Variable], arrays: Any = ARRAYS) -> Path:
    path = folder / form
    WRITERS[form](path, variables, arrays)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(WeightsUnavailableError) as caught:
        weights_file.read(path, NETWORK)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value.message


# Where weights come from


def test_source_tokens_tell_every_source_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    tokens = [
        weights.source_token("imagenet", seed=0, backbone="resnet50"),
        weights.source_token("random", seed=0, backbone="resnet50"),
        weights.source_token("random", seed=1, backbone="resnet50"),
        weights.source_token("random", seed=0, backbone="resnet101"),
        weights.source_token(str(first), seed=0, backbone="resnet50"),
        weights.source_token(str(second), seed=0, backbone="resnet50"),
    ]
    assert len(set(tokens)) == len(tokens)


def test_source_token_does_not_depend_on_what_does_not_matter(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.h5", tmp_path / "ü b.h5"
    path.write_bytes(b"one")
    copy.write_bytes(b"one")
    tokens = [
        weights.source_token(str(name), seed=seed, backbone="resnet50")
        for name, seed in [(path, 0), (copy, 0), (path, 1)]
    ]
    assert len(set(tokens)) == 1
    imagenet = [weights.source_token("imagenet", seed=seed, backbone="x") for seed in (0, 1)]
    assert len(set(imagenet)) == 1


@pytest.mark.parametrize(
    ("typed", "meant"), [("imagnet", "imagenet"), ("Random", "random"), ("IMAGENET", "imagenet")]
)
def test_a_typo_of_a_keyword_is_recognised(typed: str, meant: str) -> None:
    with pytest.raises(WeightsUnavailableError, match=f"Did you mean '{meant}'") as caught:
        weights.source_token(typed, seed=0, backbone="resnet50")
    assert "--weights PATH" in caught.value.hint
    assert "--weights random" in caught.value.hint


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="not a regular file"):
        weights.source_token(str(tmp_path), seed=0, backbone="resnet50")
    with pytest.raises(WeightsUnavailableError, match="no such file"):
        weights_file.read(tmp_path / "missing.h5", NETWORK)


# Random weights


@given(st.integers(0, 2**70), st.permutations(NETWORK), st.integers(1, len(NETWORK)))
@settings(max_examples=25, deadline=None)
def test_a_draw_depends_on_seed_and_name_alone(
    seed: int, shuffled: list[Variable], count: int
) -> None:
    everything = weights.draw(NETWORK, seed=seed)
    some = weights.draw(shuffled[:count], seed=seed)
    assert all(np.array_equal(some[path], everything[path]) for path in some)


def test_a_draw_is_glorot_uniform_with_batch_norm_at_identity() -> None:
    shape = (3, 3, 40, 80)
    drawn = weights.draw([Variable("a_conv", "Conv2D", "kernel", shape), *NETWORK], seed=0)
    kernel, limit = drawn["a_conv/kernel"], math.sqrt(6 / (9 * (40 + 80)))
    assert kernel.dtype == np.float32
    assert kernel.shape == shape
    assert 0.999 * limit < np.abs(kernel).max() <= limit
    assert abs(kernel.std() / (limit / math.sqrt(3)) - 1) < 0.01
    assert abs(kernel.mean()) < limit / 100
    assert np.unique(kernel).size > 0.99 * kernel.size
    for variable in NETWORK:
        values = drawn[variable.path]
        assert values.shape == variable.shape
        if variable.name in ("gamma", "moving_variance"):
            assert (values == 1).all()
        elif variable.name != "kernel":
            assert (values == 0).all()


def test_seeds_and_names_give_different_draws() -> None:
    first, second = weights.draw(NETWORK, seed=0), weights.draw(NETWORK, seed=1)
    kernels = [path for path in first if path.endswith("kernel")]
    assert not any(np.array_equal(first[path], second[path]) for path in kernels)
    assert not np.array_equal(first["block0_conv/kernel"], first["block1_conv/kernel"])


def test_the_scheme_never_changes() -> None:
    """Stores name the scheme instead of the values; another stream needs another scheme name."""
    drawn = weights.draw(NETWORK, seed=0)
    assert weights.RANDOM_SCHEME == "glorot-uniform-pcg64-1"
    assert weights.digest(drawn) == (
        "0e9488f227dc9ca7c681e01f1c92b212c476cd68eb665ef452baae5125ad573c"
    )


def test_a_variable_without_a_rule_is_refused() -> None:
    with pytest.raises(WeightsUnavailableError, match="norm/count"):
        weights.draw([Variable("norm", "Normalization", "count", ())], seed=0)


# Reading files


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top", [True, False], ids=["with top", "without top"])
def test_every_form_gives_the_same_values(tmp_path: Path, form: str, top: bool) -> None:
    path = write(tmp_path, form, [*NETWORK, *TOP] if top else NETWORK)
    read = weights_file.read(path, NETWORK)
    assert list(read) == [variable.path for variable in NETWORK]
    for name, values in read.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, ARRAYS[name])
    assert weights.digest(read) == weights.digest(OWN)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_told_from_the_content(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, NETWORK).rename(tmp_path / "weights.bin")
    assert weights.digest(weights_file.read(path, NETWORK)) == weights.digest(OWN)


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_variable_is_named(tmp_path: Path, form: str) -> None:
    shorter = [variable for variable in NETWORK if variable.layer != "last_bn"]
    message = refusal(write(tmp_path, form, shorter))
    assert "expected last_bn/gamma of shape (4,)" in message


@pytest.mark.parametrize("form", FORMS)
def test_the_first_variable_of_another_shape_is_named(tmp_path: Path, form: str) -> None:
    changed = {
        **ARRAYS,
        "block3_conv/kernel": np.ones((1, 1, 4, 5), np.float32),
        "block7_conv/kernel": np.ones((3, 3, 4, 4), np.float32),
    }
    message = refusal(write(tmp_path, form, NETWORK, changed))
    assert "expected block3_conv/kernel of shape (1, 1, 4, 4)" in message
    assert "(1, 1, 4, 5)" in message


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_too_many_is_refused(tmp_path: Path, form: str) -> None:
    extra = Variable("extra_conv", "Conv2D", "kernel", (1, 1, 4, 4))
    arrays = {**ARRAYS, extra.path: np.ones(extra.shape, np.float32)}
    message = refusal(write(tmp_path, form, [*NETWORK, extra], arrays))
    assert "also " in message
    assert "of shape (1, 1, 4, 4)" in message


@pytest.mark.parametrize("form", FORMS)
def test_only_one_classifier_may_be_left_over(tmp_path: Path, form: str) -> None:
    second = [replace(variable, layer="predictions_2") for variable in TOP]
    arrays = {**ARRAYS, **weight_files.values_of(second)}
    assert "predictions" in refusal(write(tmp_path, form, [*NETWORK, *TOP, *second], arrays))


@pytest.mark.parametrize("form", FORMS)
def test_a_classifier_of_odd_shape_is_refused(tmp_path: Path, form: str) -> None:
    arrays = {**ARRAYS, "predictions/bias": np.zeros(7, np.float32)}
    assert "predictions" in refusal(write(tmp_path, form, [*NETWORK, *TOP], arrays))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, form: str, bad: float) -> None:
    spoilt = ARRAYS["block5_conv/bias"].copy()
    spoilt[2] = bad
    message = refusal(write(tmp_path, form, NETWORK, {**ARRAYS, "block5_conv/bias": spoilt}))
    assert "block5_conv/bias" in message


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    arrays = {**ARRAYS, "last_bn/beta": np.full(4, 1e300)}
    assert "last_bn/beta" in refusal(write(tmp_path, "legacy.h5", NETWORK, arrays))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    arrays = {**ARRAYS, "last_bn/beta": np.zeros(4, np.int32)}
    assert "int32" in refusal(write(tmp_path, "legacy.h5", NETWORK, arrays))


def test_another_network_is_refused_at_its_first_difference(tmp_path: Path) -> None:
    other = [replace(variable, layer=f"other_{variable.layer}") for variable in NETWORK]
    message = refusal(write(tmp_path, "legacy.h5", other, weight_files.values_of(other)))
    assert "expected conv1_conv/kernel of shape (3, 3, 2, 4)" in message
    assert "other_" in message


def test_names_count_more_than_positions(tmp_path: Path) -> None:
    swapped = [*NETWORK[:6], *NETWORK[8:10], *NETWORK[6:8], *NETWORK[10:]]
    read = weights_file.read(write(tmp_path, "named.weights.h5", swapped), NETWORK)
    np.testing.assert_array_equal(read["block0_conv/kernel"], ARRAYS["block0_conv/kernel"])


def test_a_variable_held_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "legacy.h5", NETWORK)
    with h5py.File(path, "a") as file:
        file["last_bn/last_bn_1/beta:0"] = ARRAYS["last_bn/beta"]
    assert "last_bn/beta twice" in refusal(path)


# Damaged and hostile files


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_short_is_refused(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, NETWORK)
    content = path.read_bytes()

    @given(share=st.floats(0, 0.999))
    @settings(max_examples=30, deadline=None)
    def is_refused(share: float) -> None:
        path.write_bytes(content[: int(share * len(content))])
        refusal(path)

    is_refused()


@pytest.mark.parametrize("content", [b"", b"hello\n" * 100, b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.weights.h5"
    path.write_bytes(content)
    refusal(path)


def test_a_zip_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    assert "without it" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", "text")
    refusal(path)


@pytest.mark.slow
def test_an_archive_that_unpacks_without_end_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(66 << 20))
    assert "at most" in refusal(path)


def _soft(file: h5py.File, _: Path) -> None:
    file["last_bn/last_bn/beta:0"] = h5py.SoftLink("/last_bn/last_bn/gamma:0")


def _external(file: h5py.File, other: Path) -> None:
    file["last_bn/last_bn/beta:0"] = h5py.ExternalLink(str(other), "/last_bn/last_bn/beta:0")


def _external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("last_bn/last_bn/beta:0", (4,), "f4", external=[(str(other), 0, 16)])


def _virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "/last_bn/last_bn/beta:0", (4,))
    file.create_virtual_dataset("last_bn/last_bn/beta:0", layout)


def _second_name(file: h5py.File, _: Path) -> None:
    file["last_bn/last_bn/beta:0"] = file["last_bn/last_bn/gamma:0"]


def _loop(file: h5py.File, _: Path) -> None:
    file["last_bn/last_bn/loop"] = file["last_bn"]


@pytest.mark.parametrize(
    "plant", [_external, _external_storage, _loop, _second_name, _soft, _virtual]
)
def test_data_of_elsewhere_is_never_read(
    tmp_path: Path, plant: Callable[[h5py.File, Path], None]
) -> None:
    other = write(tmp_path, "legacy.h5", NETWORK)
    path = write(tmp_path, "legacy_keras3.h5", [v for v in NETWORK if v.path != "last_bn/beta"])
    with h5py.File(path, "a") as file:
        file.move("last_bn/last_bn/gamma", "last_bn/last_bn/gamma:0")
        plant(file, other)
    assert "Received a link" in refusal(path)


def test_a_linked_group_is_never_entered(tmp_path: Path) -> None:
    other = write(tmp_path, "named.weights.h5", NETWORK)
    for target in (h5py.ExternalLink(str(other), "/layers"), h5py.SoftLink("/elsewhere")):
        path = tmp_path / "linked.weights.h5"
        with h5py.File(path, "w") as file:
            file["layers"] = target
            file["elsewhere/conv2d/vars/0"] = ARRAYS["conv1_conv/kernel"]
        assert "Received a link" in refusal(path)


def test_chunks_larger_than_their_data_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "legacy.h5", [v for v in NETWORK if v.path != "last_bn/beta"])
    with h5py.File(path, "a") as file:
        file.create_dataset(
            "last_bn/last_bn/beta:0", (4,), "f4", maxshape=(None,), chunks=(1 << 20,)
        )
    assert "chunks" in refusal(path)


def test_compressed_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "small.h5"
    with h5py.File(path, "w") as file:
        for name, values in OWN.items():
            file.create_dataset(name, data=values, compression="gzip")
    assert weights.digest(weights_file.read(path, NETWORK)) == weights.digest(OWN)


@pytest.mark.parametrize("place", ["layers/stray", "layers/conv2d_3/vars/7", "layers/a/b/vars/0"])
def test_strays_among_positions_are_refused(tmp_path: Path, place: str) -> None:
    path = write(tmp_path, "unnamed.weights.h5", NETWORK)
    with h5py.File(path, "a") as file:
        file[place] = np.zeros(4, np.float32)
    refusal(path)


# Digest and store


@given(st.permutations(sorted(OWN)))
@settings(max_examples=20, deadline=None)
def test_the_digest_ignores_order_and_memory_layout(names: list[str]) -> None:
    shuffled = {name: np.asfortranarray(OWN[name]).astype(">f4") for name in names}
    assert weights.digest(shuffled) == weights.digest(OWN)


@given(st.sampled_from(sorted(OWN)), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_digest_sees_every_value(name: str, position: int) -> None:
    changed = OWN[name].copy()
    changed.flat[position % changed.size] = np.nextafter(
        changed.flat[position % changed.size], np.float32(np.inf)
    )
    assert weights.digest({**OWN, name: changed}) != weights.digest(OWN)


def test_the_digest_sees_names_and_shapes() -> None:
    values = np.arange(4, dtype=np.float32)
    digests = {
        weights.digest({"a": values}),
        weights.digest({"b": values}),
        weights.digest({"a": values.reshape(2, 2)}),
        weights.digest({"a": values[:2], "b": values[2:]}),
        weights.digest({}),
    }
    assert len(digests) == 5


def test_saved_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "encoder" / f"{weights.digest(OWN)}.h5"
    weights.save(path, OWN)
    loaded = weights.load(path)
    assert set(loaded) == set(OWN)
    assert all(np.array_equal(loaded[name], OWN[name]) for name in OWN)
    assert weights.digest(weights_file.read(path, NETWORK)) == path.stem
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saved_weights_that_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{weights.digest(OWN)}.h5"
    weights.save(path, OWN)
    with h5py.File(path, "a") as file:
        file["last_bn/beta"][0] += 1
    with pytest.raises(WeightsUnavailableError, match="digest") as caught:
        weights.load(path)
    assert "extract" in caught.value.hint
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsUnavailableError, match="damaged"):
        weights.load(path)
    path.unlink()
    with pytest.raises(WeightsUnavailableError):
        weights.load(path)


def test_saved_weights_cannot_claim_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / f"{'0' * 64}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a/kernel", (1 << 40,), "f4", chunks=(1 << 20,))
    with pytest.raises(WeightsUnavailableError, match="a/kernel"):
        weights.load(path)


# Keras' own files


def draw_into(model: Any, arrays: Any) -> None:
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])


@from_keras
@pytest.mark.slow
@pytest.mark.parametrize("name", ["any.weights.h5", "any.keras", "any.h5"])
@pytest.mark.parametrize("top", [True, False], ids=["with top", "without top"])
def test_what_keras_saves_is_read_in_every_form(tmp_path: Path, name: str, top: bool) -> None:
    from pipeline.backbones import frozen

    frozen.import_keras()
    network = weight_files.small_resnet(weights=None, include_top=True)
    notop = weight_files.small_resnet(
        weights=None, include_top=False, input_shape=(64, 64, 3), pooling="avg"
    )
    variables = variables_of(notop)
    arrays = weight_files.values_of(variables_of(network))
    model = network if top else notop
    draw_into(model, arrays)
    (model.save_weights if ".weights." in name else model.save)(tmp_path / name)
    read = weights_file.read(tmp_path / name, variables)
    assert weights.digest(read) == weights.digest({v.path: arrays[v.path] for v in variables})


@from_keras
@pytest.mark.slow
def test_resnet50_with_its_top_is_read_as_keras_saves_it(tmp_path: Path) -> None:
    """Its other files, without top, are read where every backbone's are: in ``test_table``."""
    from pipeline.backbones import frozen

    network = frozen.import_keras().applications.resnet50.ResNet50(include_top=True, weights=None)
    arrays = weight_files.values_of(variables_of(network))
    draw_into(network, arrays)
    network.save(tmp_path / "top.h5")
    variables = [v for v in variables_of(network) if v.layer != "predictions"]
    read = weights_file.read(tmp_path / "top.h5", variables)
    assert weights.digest(read) == weights.digest({v.path: arrays[v.path] for v in variables})
    (tmp_path / "top.h5").unlink()


@from_keras
@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "expected"),
    [("ResNet101", "conv4_block"), ("VGG16", "conv1_conv/kernel of shape (7, 7, 3, 64)")],
)
def test_other_networks_of_keras_are_refused(tmp_path: Path, other: str, expected: str) -> None:
    from pipeline.backbones import frozen

    keras = frozen.import_keras()
    shape = (64, 64, 3)
    resnet50 = keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape)
    network = getattr(keras.applications, other)(include_top=False, weights=None, input_shape=shape)
    variables = variables_of(resnet50)
    for name in ("other.weights.h5", "other.h5"):
        path = tmp_path / name
        (network.save_weights if ".weights." in name else network.save)(path)
        with pytest.raises(WeightsUnavailableError) as caught:
            weights_file.read(path, variables)
        path.unlink()
        assert expected in caught.value.message

"""The steps of fine-tuning on JAX: what was tested on TensorFlow, in one process of its own."""

from pathlib import Path

import pytest
from fakes import on_jax

OF_TRAINING = (
    "updates_on_the_boundary or exactly_what or interrupted_training or step_equals "
    "or a_precision_holds or multiplied_as_float32 or room_of_one or last_step_of"
)
OF_STEPS = (
    "first_update or one_rate or kernels_alone or scaled_loss or drops_a_share "
    "or follows_the_seed or other_units or do_not_depend or keeps_what or bit_for_bit"
)


@pytest.mark.slow
def test_jax_makes_the_same_steps(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    files = [str(folder / f"test_{name}.py") for name in ("cut", "steps", "training")]
    assert "25 passed" in on_jax(files, f"{OF_TRAINING} or {OF_STEPS}", tmp_path)

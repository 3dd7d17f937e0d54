"""What pages say of where something came from."""

from pipeline.pages import facts


def test_skipped_files_are_counted_by_reason() -> None:
    files = [(f"{number}.png", "empty") for number in range(250)] + [("z.png", "truncated")]
    found = facts.skipped_files(files)
    assert found["reasons"] == {"empty": 250, "truncated": 1}
    assert (len(found["rows"]), found["left_out"]) == (200, 51)
    assert found["rows"][0] == {"path": "0.png", "reason": "empty"}


def test_a_command_is_one_of_ours() -> None:
    assert facts.command_of({"argv": ["audit", "a b"]}) == "pipeline audit 'a b'"
    assert facts.command_of({"argv": ["-m", "pytest"]}) == facts.command_of({}) == ""


def test_versions_are_those_of_what_was_there() -> None:
    said = {"pipeline": "1", "python": "3", "host": "h", "packages": {"numpy": "2", "jax": None}}
    assert facts.versions_of(said) == {
        "pipeline": "1", "python": "3", "platform": None, "numpy": "2"
    }  # fmt: skip

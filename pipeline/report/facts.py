"""What a report says of where a run came from: skipped files, the rate of stage 1, its making."""

from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError
from pipeline.pages.facts import command_of, skipped_files, versions_of
from pipeline.runs.run import Run
from pipeline.store.store import Store


@dataclass(frozen=True, slots=True)
class FoundStore:
    """The store of a run, if it is there.

    Attributes:
        store: The store; None where it cannot be used.
        reason: Why not; empty where it can.
    """

    store: Store | None
    reason: str = ""


def store_of(run: Run) -> FoundStore:
    """Open the store of a run, if it is there and holds the features that the run was made of."""
    try:
        store = Store.open(run.store_path)
        store.require_identity(run.inputs.identity)
    except PipelineError as error:
        return FoundStore(None, str(error))
    return FoundStore(store)


def skipped(run: Run, found: FoundStore) -> dict[str, Any]:
    """Return the files of the data that are in no split.

    Returns:
        What ``skipped_files`` says; ``dropped``, what the run left out by its own count;
        ``unknown``, why nothing is known of them.
    """
    dropped = dict(run.record.dropped)
    nothing = {**skipped_files(()), "dropped": dropped}
    if found.store is None:
        return {**nothing, "unknown": found.reason}
    try:
        manifest = found.store.read_manifest()
    except PipelineError as error:
        return {**nothing, "unknown": str(error)}
    return {**skipped_files(manifest.skipped()), "dropped": dropped, "unknown": ""}


def stage_one(found: FoundStore) -> dict[str, Any]:
    """Return what the store recorded of its making.

    Returns:
        ``bottleneck``, ``engine``, ``device`` and ``images_per_second``, None where not recorded;
        ``unknown``, why nothing is known.
    """
    if found.store is None:
        return {"unknown": found.reason, "bottleneck": None, "engine": None}
    made = found.store.record.provenance
    return {
        "bottleneck": made.bottleneck,
        "engine": made.engine,
        "device": made.device,
        "images_per_second": made.images_per_second,
        "unknown": "",
    }


def making(run: Run, head: str, found: FoundStore) -> dict[str, Any]:
    """Return what reproduces a run.

    Args:
        run: The run.
        head: The head whose parameters are shown.
        found: Its store.

    Returns:
        ``commands``, ``seeds``, ``identity``, ``inputs``, ``parameters`` and ``versions``.
    """
    record = run.record
    commands = []
    if found.store is not None:
        commands.append(command_of(found.store.record.provenance.other))
    commands.append(command_of(record.provenance))
    parameters = record.heads[head].params
    seeds = {
        "split": record.inputs.get("split_seed"),
        "weights": record.source.weights_seed,
        head: record.inputs.get("finetune_seed", parameters.get("seed")),
    }
    return {
        "commands": [command for command in commands if command],
        "seeds": {name: seed for name, seed in seeds.items() if seed is not None},
        "identity": run.inputs.identity.as_json(),
        "inputs": {
            name: value
            for name, value in record.inputs.items()
            if name != "identity" and value is not None
        },
        "parameters": {**parameters, **record.heads[head].selected},
        "versions": versions_of(record.provenance),
    }

"""The ``train-head`` command: trains the heads asked for on stored features.

Heads that the run already holds are kept, new ones are added, and one that the run holds with other
parameters is refused.
"""

from functools import partial

from pipeline.config.options import CommonOptions, TrainHeadOptions
from pipeline.errors import ConfigError
from pipeline.runs.leaderboard import result_of
from pipeline.runs.lock import reserved
from pipeline.system.progress import Reporter, saying_warnings
from pipeline.train.fit import train_heads
from pipeline.train.logs import log_features, log_heads
from pipeline.train.prepare import (
    HeadParameters,
    check_first,
    create_heads,
    left_to_fit,
    note_rows,
    open_run,
    prepare_data,
    run_path,
)


def train_head(
    options: TrainHeadOptions,
    common: CommonOptions,
    reporter: Reporter,
    parameters: HeadParameters,
) -> dict[str, object]:
    """Run stage 2; see docs/json.md for the keys of the result.

    Args:
        options: What to train on what.
        common: ``force`` replaces an existing run.
        reporter: Where notes and progress go.
        parameters: Parameters by head name, from the configuration file.
    """
    path = run_path(options)
    check_first(options, options.head, path)
    wanted = create_heads(options.head, parameters, seed=options.seed, preset=options.preset)
    with (
        reserved(path, "train-head", wait=options.wait, reporter=reporter),
        saying_warnings(reporter),
    ):
        todo = left_to_fit(wanted, path, force=common.force)
        prepared = prepare_data(options, todo, reporter)
        if not prepared.examples.counts()["val"]:
            raise ConfigError(
                "train-head: expected images in val to choose on. "
                f"Received: --split {options.split}.",
                hint="Give val a share, or use sweep, which can cross-validate.",
            )
        run = open_run(prepared, path, force=common.force, reporter=reporter)
        note_rows(prepared.examples, reporter)
        train_heads(
            run,
            prepared.data,
            wanted,
            refit=options.refit,
            reject_below=options.reject_below,
            reporter=reporter,
            after_head=partial(log_heads, run, options),
        )
        log_heads(run, options)
        log_features(run, prepared.data, options, reporter)
        return result_of(run)

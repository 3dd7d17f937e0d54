"""Stage 2: fit heads on train, choose on val, score test once.

A head that the run already holds is left as it is; with other parameters it is refused.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.dataset.features import SplitFeatures
from pipeline.runs.run import FittedHead, Run
from pipeline.runs.scoring import ChosenHead, parameters, score_head
from pipeline.system.progress import Reporter

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def train_heads(
    run: Run,
    data: SplitFeatures,
    heads: Mapping[str, "Head"],
    *,
    refit: bool,
    reject_below: float = 0.0,
    reporter: Reporter,
    after_head: Callable[[], None] = lambda: None,
) -> None:
    """Fit, score and save every head that the run does not hold yet.

    Args:
        run: Where they go.
        data: Features and labels by split.
        heads: Unfitted heads by name.
        refit: Whether to fit once more on train and val before scoring test; the val scores
            and the temperature stay those of the model before.
        reject_below: Probability below which no answer is given.
        reporter: Where notes and progress go.
        after_head: Called after each head, when the run holds it.

    Raises:
        RunError: The run holds a head with other parameters.
    """
    todo = {name: head for name, head in heads.items() if not run.has_head(name, parameters(head))}
    for name in heads.keys() - todo.keys():
        reporter.say(f"{name}: already in {run.path}, kept")
    with reporter.bar(len(todo), "head") as bar:
        for name, head in todo.items():
            fitted = fit_head(head, data, refit=refit, reject_below=reject_below)
            run.add_head(name, fitted)
            run.say_notes(name, reporter)
            after_head()
            bar.advance()
    run.write_predictions()


def fit_head(
    head: "Head", data: SplitFeatures, *, refit: bool = False, reject_below: float = 0.0
) -> FittedHead:
    """Fit one head on train, choosing on val, and score it."""
    began = time.perf_counter()
    head.fit(*data.to_fit("train"), validation=data.part("val"))
    seconds = time.perf_counter() - began
    chosen = ChosenHead(head, data.scores(head, "val"), data.part("val")[1], seconds)
    return score_head(chosen, data, refit=refit, reject_below=reject_below)

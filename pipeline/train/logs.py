"""What stage 2 logs for TensorBoard while it trains, where that is asked for."""

from pipeline.config.options import StageTwoOptions
from pipeline.dataset.features import SplitFeatures
from pipeline.runs import tensorboard
from pipeline.runs.folder import TENSORBOARD
from pipeline.runs.run import Run
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted


def log_heads(run: Run, options: StageTwoOptions) -> None:
    """Log the heads that a run holds, after each of them; those that were logged stay."""
    if options.tensorboard or options.projector:
        tensorboard.keep_heads(run.path / TENSORBOARD, run.record.heads)


def log_features(
    run: Run, data: SplitFeatures, options: StageTwoOptions, reporter: Reporter
) -> None:
    """Log features for the embedding projector, and say of how many images."""
    if not options.projector:
        return
    folder = run.path / TENSORBOARD / tensorboard.PROJECTOR
    count = tensorboard.keep_projector(folder, run.manifest(), data.X)
    of_all = f" of {len(data.y):,}" if count < len(data.y) else ""
    reporter.say(f"Embedding projector: features of {counted(count, 'image')}{of_all} in {folder}")

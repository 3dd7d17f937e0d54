"""The stages as functions of Python, for notebooks and programs.

Each runs a command of the command line: its keyword arguments are the options of the command, with
the same defaults and checks, and its result has the keys of ``--json`` (docs/json.md).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.result import Result, given_of, of_command, performed

Place = str | Path


@of_command("extract")
def extract_features(
    data: Place,
    *,
    store: Place | None = None,
    quiet: bool = False,
    force: bool = False,
    **options: object,
) -> Result:
    """Stage 1: run the frozen backbone once over images and store the pooled features.

    What is already in the store is not computed again. Read the features with
    ``pipeline.load(store)``: float32 ``(n, dim)``, labels, and class names.

    Args:
        data: A folder with one sub-folder per class, split folders above those, or a CSV.
        store: Where features go; ``stores/NAME`` of the data by default.
        quiet: Show neither notes nor progress.
        force: Replace a store of another identity.
        options: Options of ``pipeline extract``, such as ``backbone`` or ``image_size`` (pixels).

    Returns:
        Counts (``encoded``, ``reused``, ``skipped``), ``errors``, ``images_per_second``, and where
        the features are.

    Raises:
        ConfigError: An option is unknown or has a value that it cannot have.
        ManifestError: There are no images, or every one is bad.
        StoreError: The store is damaged, or in use.
        StaleFeaturesError: The store holds features that were made in another way.
        WeightsUnavailableError: The weights cannot be had.
    """
    given = {"data": data, **given_of(store=store), **options}
    return performed("extract", given, quiet=quiet, force=force)


@of_command("train-head")
def train_heads(
    store: Place,
    *,
    heads: Sequence[str] | None = None,
    parameters: Mapping[str, Mapping[str, object]] | None = None,
    run: Place | None = None,
    quiet: bool = False,
    force: bool = False,
    **options: object,
) -> Result:
    """Stage 2: train heads on stored features; val chooses, test is scored once.

    Args:
        store: The feature store.
        heads: Names of the heads; those of the command by default.
        parameters: Parameters by head name, such as ``{"dense": {"epochs": 30}}``.
        run: Where the run goes; ``runs/NAME`` of the store by default.
        quiet: Show neither notes nor progress.
        force: Replace an existing run.
        options: Options of ``pipeline train-head``, such as ``split`` or ``seed``.

    Returns:
        ``heads`` with the scores of each, ``best``, and ``pairs``, their paired tests. Accuracies
        are shares from 0 to 1, times are in seconds.

    Raises:
        ConfigError: A head, a parameter or an option is unknown.
        ManifestError: The rows cannot be split.
        RunError: The run was made from something else.
        StoreError: There is no store, or it is damaged.
    """
    given = {"store": store, **given_of(head=heads, run=run), **options}
    tables = {"heads": parameters or {}}
    return performed("train-head", given, quiet=quiet, force=force, tables=tables)


@of_command("sweep")
def sweep_heads(
    store: Place,
    *,
    heads: Sequence[str] | None = None,
    grids: Mapping[str, Mapping[str, object]] | None = None,
    parameters: Mapping[str, Mapping[str, object]] | None = None,
    run: Place | None = None,
    quiet: bool = False,
    force: bool = False,
    **options: object,
) -> Result:
    """Try many settings of many heads on stored features; the best of each head is kept.

    Args:
        store: The feature store.
        heads: Names of the heads; those of the command by default.
        grids: What to try by head name, such as ``{"logreg": {"C": [0.01, 1.0]}}``.
        parameters: Fixed parameters by head name.
        run: Where the run goes; ``runs/NAME-sweep`` of the store by default.
        quiet: Show neither notes nor progress.
        force: Replace an existing run.
        options: Options of ``pipeline sweep``, such as ``folds``.

    Returns:
        What ``train_heads`` returns, with ``trials`` by head and ``lead``, how far the best leads.

    Raises:
        ConfigError: A head, a parameter or an option is unknown.
        RunError: The run was made from something else.
        StoreError: There is no store, or it is damaged.
    """
    given = {"store": store, **given_of(head=heads, run=run), **options}
    tables = {"heads": parameters or {}, "grids": grids or {}}
    return performed("sweep", given, quiet=quiet, force=force, tables=tables)


@of_command("compare")
def compare_runs(*runs: Place, quiet: bool = False, **options: object) -> Result:
    """Compare the heads of one or more runs on the test images that all of them share.

    Args:
        runs: Run directories.
        quiet: Show neither notes nor progress.
        options: Options of ``pipeline compare``: ``seeds``, ``curve``, ``store``.

    Returns:
        ``groups``, one leaderboard per set of shared test images, ``pairs``, ``seeds``, ``curve``.

    Raises:
        RunError: A run cannot be compared, or its store is gone.
    """
    return performed("compare", {"runs": runs, **options}, quiet=quiet, force=False)


@of_command("finetune")
def fine_tune(
    start: Place,
    *,
    run: Place | None = None,
    quiet: bool = False,
    force: bool = False,
    **options: object,
) -> Result:
    """Stage 3: train the top of the network of a run with its head, at a low rate.

    Args:
        start: The run of stage 2 to start from.
        run: Where the run goes; beside ``start`` by default.
        quiet: Show neither notes nor progress.
        force: Replace an existing run.
        options: Options of ``pipeline finetune``, such as ``unfreeze_from`` or ``epochs``.

    Returns:
        The scores of both heads, and in ``finetune`` the epochs and the verdict.

    Raises:
        HeadNotTrainableError: The head is no network.
        ManifestError: Images are gone.
        RunError: A run does not fit.
        StaleFeaturesError: An image changed, or the network disagrees with stage 2.
        StoreError: The store is gone or damaged.
    """
    given = {"source": start, **given_of(run=run), **options}
    return performed("finetune", given, quiet=quiet, force=force)


@of_command("export")
def export_model(
    run: Place, out: Place, *, quiet: bool = False, force: bool = False, **options: object
) -> Result:
    """Write a head with its backbone as one model, checked against the cached features.

    The model takes uint8 ``(n, S, S, 3)`` RGB images and gives float32 ``(n, classes)``
    probabilities.

    Args:
        run: The run.
        out: File or folder to write; its suffix says the format.
        quiet: Show neither notes nor progress.
        force: Replace an earlier export.
        options: Options of ``pipeline export``: ``head``, ``format``, ``weights``, ...

    Returns:
        ``out``, ``format``, ``bytes``, ``classes``, and ``stitch``, the largest difference found.

    Raises:
        ConfigError: An option cannot be used, or OUT exists.
        EngineUnavailableError: The format needs what is not installed.
        HeadNotTrainableError: The format needs a network, and the head is not one.
        PipelineError: The model disagrees with the cached features.
        RunError: Run and head do not fit.
    """
    return performed("export", {"run": run, "out": out, **options}, quiet=quiet, force=force)


@of_command("evaluate")
def evaluate_run(
    run: Place, data: Place, *, quiet: bool = False, force: bool = False, **options: object
) -> Result:
    """Score a saved head on other labelled images.

    Args:
        run: The run, or a folder of ``export_model``.
        data: A folder with one sub-folder per class, split folders above those, or a CSV.
        quiet: Show neither notes nor progress.
        force: Replace an existing ``csv`` file.
        options: Options of ``pipeline evaluate``: ``head``, ``csv``, ``weights``, ...

    Returns:
        ``scores``, with those of every class and the confusion matrix; counts of what was left
        out; ``seen``, how many of the images the run was made with. Scores are shares from 0 to 1.

    Raises:
        ConfigError: An option cannot be used.
        ManifestError: The data cannot be listed, or holds no class of the run.
        RunError: There is no run, or the head cannot be used.
        WeightsUnavailableError: The weights are nowhere.
    """
    return performed("evaluate", {"run": run, "data": data, **options}, quiet=quiet, force=force)


@of_command("report")
def report_run(run: Place, *, quiet: bool = False, **options: object) -> Result:
    """Write a page that shows what a run found: one HTML file that opens by double click.

    Args:
        run: The run; the page is its ``report.html``.
        quiet: Show neither notes nor progress.
        options: Options of ``pipeline report``: ``head``, ``map``, ``store``, ``data``.

    Returns:
        ``report``, the path of the page, its ``bytes``, and how many ``pictures`` are in it.

    Raises:
        EngineUnavailableError: The extra ``report`` is not installed, or ``umap`` for that map.
        RunError: There is no run, it has no such head, or files of it are damaged.
    """
    return performed("report", {"run": run, **options}, quiet=quiet, force=False)


@of_command("audit")
def audit_store(
    store: Place, *, quiet: bool = False, force: bool = False, **options: object
) -> Result:
    """Look for copies, leaks, label errors, outliers and confounders; no backbone runs.

    Args:
        store: The feature store.
        quiet: Show neither notes nor progress.
        force: Replace an existing ``audit.csv`` and ``audit.html``.
        options: Options of ``pipeline audit``: ``run``, ``manifest``, ``threshold``, ...

    Returns:
        ``near_duplicates``, ``leaks``, ``label_errors`` and what else was found; ``notes`` says why
        a section has nothing; ``csv`` is the table to edit, ``html`` the page (None without the
        extra ``report``). Similarities are cosines, scores go from 0 to 1.

    Raises:
        ConfigError: An option cannot be used, or the features do not fit into memory.
        ManifestError: The manifest cannot be used.
        PipelineError: A threshold makes nearly all images copies.
        RunError: The run is of other features, or of other images.
        StoreError: There is no store, or it is damaged.
    """
    return performed("audit", {"store": store, **options}, quiet=quiet, force=force)


@of_command("suggest")
def suggest_images(
    store: Place, *, quiet: bool = False, force: bool = False, **options: object
) -> Result:
    """Say which unlabelled images to label next; no backbone runs.

    Args:
        store: The feature store.
        quiet: Show neither notes nor progress.
        force: Replace an existing table.
        options: Options of ``pipeline suggest``: ``n``, ``run``, ``head``, ``manifest``, ``out``.

    Returns:
        ``suggestions``, the image to begin with first, with ``proposed``, ``probability`` and
        ``uncertainty`` (0 to 1), and ``csv``, the table to fill in and give to ``train_heads``.

    Raises:
        ConfigError: An option cannot be used, or the features do not fit into memory.
        ManifestError: The manifest cannot be used, or every image has a label.
        RunError: The run is of other features, or its head cannot be used.
        StoreError: There is no store, or it is damaged.
    """
    return performed("suggest", {"store": store, **options}, quiet=quiet, force=force)


@of_command("import-features")
def import_features(
    file: Place, *, quiet: bool = False, force: bool = False, **options: object
) -> Result:
    """Make a store of features that were made elsewhere; heads, audit and report work on it.

    Args:
        file: ``.npy`` with a list of paths, ``.parquet``, ``.h5`` or ``.hdf5``.
        quiet: Show neither notes nor progress.
        force: Replace a store of other features.
        options: Options of ``pipeline import-features``: ``store``, ``paths``, ``data``, ...

    Returns:
        Counts (``imported``, ``reused``, ``skipped``), ``errors``, and ``store``.

    Raises:
        ManifestError: The file cannot be used.
        StaleFeaturesError: The store holds other features.
    """
    return performed("import-features", {"file": file, **options}, quiet=quiet, force=force)


@of_command("export-features")
def export_features(
    store: Place, file: Place, *, quiet: bool = False, force: bool = False, **options: object
) -> Result:
    """Write the features of a store, with paths, labels, splits and keys, into one plain file.

    Args:
        store: The feature store.
        file: ``.h5``, ``.parquet``, or ``.npy``, which gets a ``.csv`` beside it.
        quiet: Show neither notes nor progress.
        force: Replace a file that is there.
        options: Options of ``pipeline export-features``: ``manifest``, ``all``, ``view``.

    Returns:
        ``file``, ``list`` (the table beside it), ``images``, ``dim`` and ``bytes``.

    Raises:
        ConfigError: An option cannot be used, or something is in the way.
        StoreError: There is no store, it lacks features or the view, or is damaged.
    """
    given = {"store": store, "file": file, **options}
    return performed("export-features", given, quiet=quiet, force=force)

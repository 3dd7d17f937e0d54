"""Results as text for people; pure functions from a command's result to lines.

Called by ``cli``, which prints them.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from pipeline.system.wording import counted

_ERRORS_SHOWN: Final = 10
_CLASS: Final = ("class", "classes")


def sample(result: Mapping[str, Any]) -> list[str]:
    """Describe the written sample."""
    return [
        f"{counted(result['images'], 'image')} in {counted(result['classes'], *_CLASS)} in "
        f"{result['out']} ({result['written']:,} written now)"
    ]


def extract(result: Mapping[str, Any]) -> list[str]:
    """Describe what stage 1 did."""
    if result.get("dry_run"):
        return [
            f"{counted(result['images'], 'image')}: {result['new']:,} new, "
            f"{result['reused']:,} reused, {result['skipped']:,} bad",
            f"About {_duration(result['estimated_seconds'])} and "
            f"{_size(result['estimated_bytes'])} in {result['store']}"
            + (f" (rate: {result['estimated_from']})" if result["estimated_from"] else ""),
            "Nothing was written.",
        ]
    rate = result["images_per_second"]
    lines = [
        f"{result['encoded']:,} encoded, {result['reused']:,} reused, "
        f"{result['skipped']:,} skipped of {counted(result['images'], 'image')} in "
        f"{_duration(result['seconds'])}" + (f" ({rate:,.0f} images/s)" if rate else "")
    ]
    lines += _bottleneck(result["bottleneck"])
    lines += [f"View {name}: {count:,} made" for name, count in result["views"].items()]
    lines += _errors(result["errors"], "in the manifest")
    if result["conflicting"]:
        lines.append(
            f"{counted(result['conflicting'], 'image')} under two labels, in no split "
            f"(status 'conflicting label' in {result['manifest']})"
        )
    if result["weights"] == "random":
        lines.append(
            "The weights are random (an untrained network): fine for trying things out; "
            "use --weights imagenet on your photos"
        )
    lines.append(f"Features: {result['store']}/features.h5   Manifest: {result['manifest']}")
    return lines


def train_head(result: Mapping[str, Any]) -> list[str]:
    """Show the leaderboard of a run, the verdicts, and what was written."""
    rows = _head_rows(result)
    run = result["run"]
    return [
        *_leaderboard(rows),
        *_uncertainty(result["split"]["test"]),
        *map(verdict, result["pairs"]),
        *_rejected(result["heads"]),
        f"Wrote {run}/run.json, {run}/predictions.csv, {run}/manifest.csv, {run}/heads/",
    ]


def _head_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the leaderboard rows of one run, best test accuracy first."""
    rows = [
        {
            "head": head + (" *" if head == result["best"] else ""),
            "val_accuracy": record["val"]["accuracy"],
            "fit_seconds": record["fit_seconds"],
            "predict_seconds": record["predict_seconds"],
            **record["test"],
        }
        for head, record in result["heads"].items()
    ]
    return sorted(rows, key=lambda row: -row["accuracy"])


def compare(result: Mapping[str, Any]) -> list[str]:
    """Show the leaderboard of several runs, one for each group that shares test images."""
    several = sum(len(group["runs"]) for group in result["groups"]) > 1
    lines = [
        line for group in result["groups"] for line in ("", *_of_group(group, several=several))
    ][1:]
    lines += [f"Left out: {item['run']}: {item['reason']}" for item in result["left_out"]]
    if len(result["groups"]) > 1:
        lines.append("Runs of different leaderboards share no test image")
    return [*lines, *_seeds(result["seeds"]), *_curve(result["curve"])]


def _of_group(group: Mapping[str, Any], *, several: bool) -> list[str]:
    """Show one leaderboard; where there are several runs, which one each head is of."""
    rows = [
        {**row, "head": (f"{row['run']}:" if several else "") + row["head"] + " *" * row["best"]}
        for row in group["rows"]
    ]
    lines = [*_leaderboard(rows), *_uncertainty(group["n"])]
    for run, count in group["n_by_run"].items():
        if count != group["n"]:
            lines.append(
                f"{run} has {counted(count, 'test image')}; {group['n']:,} are shared by all runs"
            )
    return [*lines, *map(verdict, group["pairs"])]


def sweep(result: Mapping[str, Any]) -> list[str]:
    """Show the leaderboard of the chosen settings and how far the best one leads."""
    lines = train_head(result)
    lead = result["lead"]
    if lead is None:
        return lines
    says = "a real difference" if lead["is_real"] else "no real difference"
    return [
        *lines[:-1],
        f"Where settings are chosen, {lead['best']} leads {lead['next']} by "
        f"{100 * lead['difference']:.1f} points on {counted(lead['n'], 'image')} "
        f"({_interval(lead)}: {says})",
        lines[-1],
    ]


def finetune(result: Mapping[str, Any]) -> list[str]:
    """Show both heads and whether fine-tuning was worth it."""
    lines = train_head(result)
    return [*lines[:-1], result["finetune"]["verdict"]["text"], lines[-1]]


def predict(result: Mapping[str, Any]) -> list[str]:
    """Show one line an image."""
    lines = []
    for item in result["predictions"]:
        top = ", ".join(f"{row['label']} {row['probability']:.3f}" for row in item["top"])
        lines.append(f"{item['path']}: {top}" + ("" if item["label"] else " (no answer)"))
    rate = result["images_per_second"]
    written = f"; wrote {result['csv']}" if result["csv"] else ""
    return [
        *lines,
        *_errors(result["errors"], "by --json"),
        f"{counted(len(result['predictions']), 'image')} classified, {result['skipped']:,} skipped "
        f"({rate:,.0f} images/s, {result['engine']}){written}",
    ]


def export(result: Mapping[str, Any]) -> list[str]:
    """Say what was written and that it was checked."""
    stitch = result["stitch"]
    return [
        f"Wrote {result['out']} ({result['format']}, {_size(result['bytes'])}): "
        f"{result['head']}, {counted(len(result['classes']), *_CLASS)}",
        f"Agrees with the cached path on {counted(stitch['n'], 'image')}: "
        f"largest difference of a probability {stitch['max_difference']:.1e}",
    ]


def info(result: Mapping[str, Any]) -> list[str]:
    """Describe a store or a run."""
    if result["kind"] == "run":
        return _run_info(result)
    return [
        f"Store {result['path']}: {counted(result['rows'], 'image')} x {result['dim']:,} features "
        f"in {counted(result['shards'], 'shard')}, {_size(result['bytes'])}",
        *_activations(result),
        f"Data: {result['root']}, {counted(result['images'], 'image')}; "
        f"statuses {result['statuses']}",
        f"Classes: {result['classes']}",
        *(f"  {name}: {value}" for name, value in result["identity"].items()),
        *(f"  made with {name}: {value}" for name, value in result["provenance"].items()),
    ]


def _run_info(result: Mapping[str, Any]) -> list[str]:
    """Describe a run, with the scores that it recorded."""
    heads = ", ".join(result["heads"]) or "none"
    has_scores = result["split"]["test"] > 0 and result["heads"]
    return [
        f"Run {result['path']}: heads {heads}; best {result['best']}",
        f"Made from {result['store']}; split {result['split']}",
        f"Classes: {', '.join(result['classes'])}",
        *(_leaderboard(_head_rows(result)) if has_scores else ()),
        *(_uncertainty(result["split"]["test"]) if has_scores else ()),
    ]


def verify(result: Mapping[str, Any]) -> list[str]:
    """Say what is bad, and what was done about it."""
    state = "every byte is right"
    if not result["ok"]:
        state = counted(len(result["problems"]), "problem")
    rows = counted(result["rows"], "row")
    if "kind" in result:
        found = f"{counted(result['heads'], 'good head')}, {rows}"
    else:
        count = result["boundary_shards"]
        of_activations = f", {counted(count, 'good shard')} of frozen activations"
        found = (
            f"{counted(result['shards'], 'good shard')}, {rows}{of_activations if count else ''}"
        )
    again = result.get("reencoded")
    return [
        f"{found}: {state}",
        *([f"{counted(again, 'row')} encoded again and compared"] if again else []),
        *(f"{item['problem']} {item['fix']}" for item in result["problems"]),
        *(f"Repaired: {done}" for done in result["repaired"]),
    ]


def prune(result: Mapping[str, Any]) -> list[str]:
    """Say what was dropped."""
    activations = ""
    if result["boundary_dropped"] or result["boundary_shards"]:
        activations = (
            f", {counted(result['boundary_dropped'], 'shard')} of frozen activations dropped, "
            f"{result['boundary_shards']} kept"
        )
    return [
        f"{counted(result['dropped'], 'feature')} dropped, {result['rows']:,} kept "
        f"in {counted(result['shards'], 'shard')}{activations}; "
        f"{_size(max(result['freed_bytes'], 0))} freed"
    ]


def verdict(pair: Mapping[str, Any]) -> str:
    """Say in plain words what a paired test shows, after correction for many pairs."""
    points = f"{abs(100 * pair['difference']):.1f} points"
    where = f"on {counted(pair['n'], 'image')} ({_interval(pair)}"
    p_value = f"p = {pair['p_adjusted']:.2g})"
    if not pair["is_real"]:
        return (
            f"{pair['a']} and {pair['b']} differ by {points} {where}): no real difference shown "
            f"({p_value}"
        )
    word = "better" if pair["difference"] > 0 else "worse"
    return f"{pair['a']} is {points} {word} than {pair['b']} {where}, {p_value}"


def _interval(compared: Mapping[str, Any]) -> str:
    """Return the interval that goes with a verdict, in points."""
    low, high = (100 * end for end in compared["simultaneous_ci95"])
    simultaneous = "simultaneous " if compared["comparisons"] > 1 else ""
    return f"{simultaneous}95 % interval {low:+.1f} to {high:+.1f}"


def _activations(store: Mapping[str, Any]) -> list[str]:
    """Say what fine-tuning keeps in a store, if anything."""
    if not store["boundary_shards"]:
        return []
    return [
        f"Frozen activations for finetune: {counted(store['boundary_shards'], 'shard')}, "
        f"{_size(store['boundary_bytes'])} in boundary/ (safe to delete)"
    ]


def _bottleneck(found: Mapping[str, Any] | None) -> list[str]:
    """Say what bounds the rate, and what would raise it."""
    if found is None:
        return []
    busy = ", ".join(f"{part} {100 * share:.0f} %" for part, share in found["busy"].items())
    return [f"Bound by {found['bound']} (busy: {busy}); faster with {found['advice']}"]


def _errors(errors: Sequence[Mapping[str, str]], listed: str) -> list[str]:
    lines = [f"  skipped {item['path']}: {item['reason']}" for item in errors[:_ERRORS_SHOWN]]
    more = len(errors) - _ERRORS_SHOWN
    return lines + ([f"  and {more:,} more, listed {listed}"] if more > 0 else [])


def _seeds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Show mean and spread over seeds."""
    if not rows:
        return []
    table: list[Sequence[str]] = [("head", "mean", "sd", "lowest", "highest")]
    for row in rows:
        cells = (row["mean"], row["sd"], row["low"], row["high"])
        table.append((_titled(row, rows), *(f"{cell:.3f}" for cell in cells)))
    title = f"Test accuracy over {rows[0]['seeds']} seeds of {rows[0]['varies']}:"
    return ["", title, *_aligned(table)]


def _curve(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Show accuracy against the number of training images."""
    if not rows:
        return []
    counts = list(dict.fromkeys(row["n_train"] for row in rows))
    table: list[Sequence[str]] = [("head", *(f"{count:,}" for count in counts))]
    for title in dict.fromkeys(_titled(row, rows) for row in rows):
        cells = {row["n_train"]: row for row in rows if _titled(row, rows) == title}
        table.append(
            (title, *(f"{cells[c]['accuracy']:.3f}" if c in cells else "" for c in counts))
        )
    return ["", "Test accuracy by number of training images:", *_aligned(table)]


def _titled(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    several = len({item["run"] for item in rows}) > 1
    return f"{row['run']}:{row['head']}" if several else str(row["head"])


def _leaderboard(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return an aligned table, one line a row."""
    table = [("head", "test acc", "95 % interval", "balanced", "macro F1", "log loss", "ECE",
              "val acc", "fit", "predict")]  # fmt: skip
    for row in rows:
        low, high = row["accuracy_ci95"]
        table.append(
            (
                row["head"],
                _number(row["accuracy"]),
                f"{low:.3f} - {high:.3f}",
                _number(row["balanced_accuracy"]),
                _number(row["macro_f1"]),
                _number(row["log_loss"]),
                _number(row["ece"]),
                _number(row["val_accuracy"]),
                f"{row['fit_seconds']:.1f} s",
                f"{1e3 * row['predict_seconds']:.0f} ms",
            )
        )
    return _aligned(table)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column to the left and the others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def _uncertainty(count: int) -> list[str]:
    return [
        f"* chosen on val. Accuracy on {counted(count, 'test image')}, scored once; "
        "Wilson interval."
    ]


def _rejected(heads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what withholding answers below the threshold does, if there is one."""
    lines = []
    for head, record in heads.items():
        threshold, test = record["reject"]["threshold"], record["reject"]["test"]
        if threshold > 0:
            accuracy = "-" if test["accuracy"] is None else f"{test['accuracy']:.3f}"
            lines.append(
                f"{head}: at probability {threshold:g} and above it answers "
                f"{100 * test['coverage']:.1f} % of test, accuracy {accuracy} among them"
            )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


RENDERERS: Final[Mapping[str, Callable[[Mapping[str, Any]], list[str]]]] = MappingProxyType(
    {
        "sample": sample,
        "extract": extract,
        "train-head": train_head,
        "sweep": sweep,
        "compare": compare,
        "finetune": finetune,
        "predict": predict,
        "export": export,
        "info": info,
        "verify": verify,
        "prune": prune,
    }
)

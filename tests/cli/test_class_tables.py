"""Scores of classes as text."""

from typing import Any

import numpy as np

from pipeline.cli.class_tables import matrix, score_table, worst_classes, worst_of
from pipeline.cli.text import as_lines
from pipeline.runs.per_class import per_class


def scores_of(counts: list[list[int]]) -> dict[str, Any]:
    cells = [
        (true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        for _ in range(count)
    ]
    y, predicted = np.array(cells).T
    return per_class(y, predicted, len(counts))


def test_the_worst_classes_come_first_with_what_they_are_mistaken_for() -> None:
    scores = scores_of([[9, 1, 0], [3, 5, 2], [0, 0, 10]])
    said = worst_of(scores, ["ant", "bee", "cow"], title="on test, logreg")
    assert list(as_lines(said)) == [
        "Lowest recall on test, logreg:",
        "class  recall  images  mistaken for",
        "bee     0.500      10  ant (3), cow (2)",
        "ant     0.900      10  bee (1)",
    ]


def test_many_imperfect_classes_are_counted() -> None:
    counts = np.full((8, 8), 1) + np.diag(np.arange(8))
    said = list(
        as_lines(worst_of(scores_of(counts.tolist()), list("abcdefgh"), title="on test, x"))
    )
    assert [line.split()[0] for line in said[2:5]] == list("abc")
    assert said[2].endswith("b (1), c (1), d (1), …")
    assert said[-1] == "and 5 classes more with mistakes (info --per-class)"


def test_nothing_is_said_where_there_is_nothing_to_tell() -> None:
    assert worst_of(scores_of([[9, 0], [0, 9]]), ["a", "b"], title="") == []
    assert worst_of(scores_of([[8, 1], [1, 8]]), ["a", "b"], title="") == []
    assert worst_of(scores_of([[9, 0, 0], [0, 9, 0], [0, 0, 9]]), list("abc"), title="") == []
    assert worst_of(scores_of([[8, 1], [2, 7]]), ["a", "b"], title="") != []
    assert worst_classes({"heads": {}, "best": None, "classes": []}) == []


def test_of_many_classes_the_mistakes_are_listed() -> None:
    names = [f"class {number}" for number in range(150)]
    y = np.arange(150)
    predicted = np.where(y == 7, 8, y)
    scores = per_class(y, predicted, 150)
    assert list(as_lines(matrix(scores, names, title="on test, x")))[1:] == [
        "true     predicted  images",
        "class 7    class 8       1",
    ]
    table = list(as_lines(score_table(scores, names, title="")))
    assert len(table) == 152
    assert table[9].split() == ["class", "7", "-", "0.000", "0.000", "1"]

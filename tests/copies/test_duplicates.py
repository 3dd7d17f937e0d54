"""The search for near duplicates: what it takes for the same, and what it looks at."""

from pathlib import Path

import numpy as np
import pytest
from fakes import planted_store

from pipeline.copies import approximate, duplicates
from pipeline.copies import search as searches
from pipeline.copies.distinct import distinct_images
from pipeline.copies.neighbours import Pairs
from pipeline.copies.search import search, without_photos
from pipeline.copies.threshold import Threshold
from pipeline.system.progress import Silence


def test_what_is_looked_at_does_not_depend_on_the_order_of_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An audit lists images by path, a leak-free split by key."""
    monkeypatch.setattr(duplicates, "CANDIDATES", 2)
    rng = np.random.default_rng(0)
    first, second = np.triu_indices(14, 1)
    similarity = rng.permutation(len(first)) / len(first)
    found = []
    for order in (np.arange(14), rng.permutation(14)):
        renumbered = np.sort(np.stack([order[first], order[second]]), axis=0)
        looked_at = duplicates._nearest_candidates(Pairs(*renumbered, similarity))
        found.append(set(np.flatnonzero(looked_at).tolist()))
    assert found[0] == found[1]
    # The two most similar ones of each image, and no other.
    wanted = set()
    for image in range(14):
        of_image = np.flatnonzero((first == image) | (second == image))
        wanted |= set(of_image[np.argsort(-similarity[of_image])[:2]].tolist())
    assert found[0] == wanted
    assert not duplicates._nearest_candidates(Pairs.together([])).any()


def test_the_threshold_of_an_earlier_search_is_taken_where_it_compared_by_the_same(
    tmp_path: Path,
) -> None:
    store = planted_store(tmp_path / "store", {"ant": 20, "bee": 20})
    images = distinct_images(store, store.read_manifest())
    photos = without_photos(images)
    chosen = search(images, photos, Silence()).threshold
    assert chosen.compared_by == "features" and chosen.chosen
    assert chosen.search == "exact" and chosen.recall is None
    said = {**chosen.as_json(), "similarity": 0.1, "candidates": 0.1}
    known = Threshold.of(said)
    assert search(images, photos, Silence(), known=known).threshold == known
    # How well an earlier search found them is no matter of this one.
    nearly = Threshold.of({**said, "search": "approximate", "recall": 0.9})
    assert search(images, photos, Silence(), known=nearly).threshold == known
    by_pixels = Threshold.of({**said, "compared_by": "features and pixels"})
    assert search(images, photos, Silence(), known=by_pixels).threshold == chosen
    assert search(images, photos, Silence(), given=0.5, known=known).threshold.similarity == 0.5


def test_a_long_search_is_announced_with_what_makes_it_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listening(Silence):
        """Remembers what is said."""

        def say(self, text: str) -> None:
            said.append(text)

    store = planted_store(tmp_path / "store", {"ant": 20, "bee": 20})
    images = distinct_images(store, store.read_manifest())
    monkeypatch.setattr(searches, "_LARGE", 30)
    monkeypatch.setattr(searches, "LARGE", 35)
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    search(images, without_photos(images), Listening())
    (line,) = said
    assert line.startswith("Comparing 40 images with each other, exactly: about 0 minutes")
    assert line.endswith("faiss finds nearly all sooner: pip install 'embedding-pipeline[faiss]'")

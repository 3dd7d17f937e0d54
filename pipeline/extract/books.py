"""What the leader of an extraction on Ray enters of what nodes answer, and of what they cannot do.

A node that must not go on ends the run. Trouble of another kind, such as a full disk or a file
system that is away for a moment, costs the part: it stays pending, and a further round takes it.
"""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final

from pipeline.extract.ledger import Ledger
from pipeline.extract.messages import Answer, Refusal
from pipeline.extract.node_work import NodeWork
from pipeline.store.scan_cache import ScanCache
from pipeline.store.storage import Storage
from pipeline.system import nodes
from pipeline.system.progress import Bar, Reporter

# Parts in a row that every node must fail on to end a round before its end.
_TROUBLES: Final = 3


@dataclass(slots=True)
class Books:
    """The state of the images of a run, and of its nodes.

    Attributes:
        ray: Ray, connected.
        wanted: What an encoding actor takes of a node.
        ledger: What is known of every image.
        cache: What earlier runs learned about files.
        storage: Where the store keeps its files.
        work: What each node did, by its name.
        bar: The progress.
        reporter: Where trouble is said.
        trouble: The last of it, in one line; empty of none.
    """

    ray: ModuleType
    wanted: Mapping[str, float]
    ledger: Ledger
    cache: ScanCache
    storage: Storage
    work: dict[str, NodeWork]
    bar: Bar
    reporter: Reporter
    trouble: str = ""
    _since: float = field(default_factory=time.monotonic)
    _in_a_row: Counter[str] = field(default_factory=Counter)
    _said: set[str] = field(default_factory=set)

    def enter(self, answer: Answer) -> None:
        """Settle the images of a part, or leave them pending.

        Raises:
            PipelineError: The node must not go on, or none of them can.
        """
        if answer.refusal is not None:
            self._refused(answer.refusal)
            return
        for view, name in answer.shards:
            with suppress(OSError):  # not to be seen here yet; it is hashed once it is
                status = self.storage.status(self.ledger.targets[view].path_of(name))
                if status is not None:  # of an address it may be nowhere here
                    self.cache.remember_check(name, status)
        for index, file in answer.files:
            if not self.ledger.take(index, file):
                self.ledger.accept(index, file.key)
            self.bar.advance(reused=self.ledger.reused, skipped=self.ledger.skipped)
        self.cache.commit()
        self._since = time.monotonic()
        for done in (answer.reading, answer.making):
            if done is not None:
                del self._in_a_row[done.node]
                self._work_of(done.node).add(done)

    def _work_of(self, name: str) -> NodeWork:
        """Return what a node did; of one that joined, the cluster tells its processors."""
        if name not in self.work:
            for node in nodes.alive(self.ray):
                self.work.setdefault(node.name, NodeWork(node.name, node.cpus))
        return self.work.setdefault(name, NodeWork(name))

    def _refused(self, refusal: Refusal) -> None:
        """Say which node is in trouble, once.

        Raises:
            PipelineError: The node must not go on; or every node is in trouble, or nothing was
                done for as long as a cluster is waited for.
        """
        if refusal.is_final:
            raise refusal.error()
        self.trouble = refusal.message
        self._in_a_row[refusal.node] += 1
        if refusal.node not in self._said:
            self._said.add(refusal.node)
            self.reporter.say(f"Note: {refusal.message} Its images are tried again later.")
        able = {node.name for node in nodes.alive(self.ray) if node.fits(self.wanted)}
        limit = nodes.patience(self.ray)
        is_long = limit is not None and time.monotonic() - self._since >= limit
        if is_long or all(self._in_a_row[name] >= _TROUBLES for name in able | {refusal.node}):
            raise refusal.error()

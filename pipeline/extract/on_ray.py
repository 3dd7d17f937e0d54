"""Stage 1 on a cluster of Ray: another driver over the same ledger.

Ray Data streams parts of the listing through decoding tasks into a pool of encoding actors
(``node``), holds back whoever is too fast, and tries again what a lost process had begun. What an
actor had begun when it was lost is not waited for: its images stay pending in the ledger, and a
further round takes them. So whatever is lost costs what was under way there, also when no other
node comes, and what is stored is found by its keys and never by the memory of a cluster.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Final

from pipeline.backbones import probe
from pipeline.config.extracting import ExtractOptions
from pipeline.errors import ClusterError, StoreError, mention
from pipeline.extract import first_probe
from pipeline.extract.books import Books
from pipeline.extract.ledger import Ledger
from pipeline.extract.messages import Job, Part, Refusal, packed, unpacked
from pipeline.extract.node import ANSWER, PART, EncodingActor, decode, probed, require_sight
from pipeline.extract.node_work import NodeWork, bottleneck_of
from pipeline.extract.work import Work, rate_of
from pipeline.files import places
from pipeline.files.location import is_address, locate
from pipeline.images import reading
from pipeline.images.manifest import OK, Manifest
from pipeline.store.scan_cache import ScanCache
from pipeline.store.store import Store
from pipeline.system import cluster, nodes, ray_output
from pipeline.system.nodes import Node
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# Of pixels in one part, which is what a decoding task hands over: small, so that a few for each
# actor fit into the memory that processes share.
_PART_BYTES: Final = 40 << 20
# Whose answer, keys and states of files, still travels with Ray's own messages.
_PART_ROWS: Final = 512
# Parts of a small data set for each actor, so that all end at about the same time.
_PARTS_PER_ACTOR: Final = 16
# Rounds in a row that bring nothing, for trouble of nodes that may pass, to end a run.
_FRUITLESS: Final = 3
# Parts at a time that a cluster of this machine alone has room for.
_PARTS_IN_MEMORY: Final = 16
# Most processors of one actor; a network gains little from more.
_CORES: Final = 16
# Of the processors of an actor, what Ray is told that it takes. The rest is for a decoding task for
# each of them: as on one machine, where as many threads decode beside a network that takes all.
_ENCODING_SHARE: Final = 0.75
# Threads of a decoding task: of images in files, and of those at addresses, which are waited for.
_READING: Final = 2
_WAITING: Final = 16
# How long a shard that was written elsewhere may take to be seen here.
_SEEN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Pool:
    """What an encoding actor and a decoding task take of a node.

    Attributes:
        cores: Processors of an actor; None where it takes a GPU.
        actors: How many fit on the nodes that there are.
    """

    cores: int | None
    actors: int

    @classmethod
    def of(cls, members: Sequence[Node], cores: int | None) -> "Pool":
        """Return one actor per GPU, or per so many processors.

        Args:
            members: The nodes.
            cores: As asked for: 0 stands for a GPU; None for a GPU where there is one, else for
                the processors of the smallest node.
        """
        if cores == 0 or (cores is None and any(node.gpus for node in members)):
            return cls(None, max(1, sum(int(node.gpus) for node in members)))
        sizes = [int(node.cpus) for node in members if node.cpus >= 1]
        chosen = cores or min([*sizes, _CORES])
        return cls(chosen, max(1, sum(size // chosen for size in sizes)))

    @property
    def encoding(self) -> dict[str, float]:
        """What Ray sets aside for an actor."""
        if self.cores is None:
            return {"num_cpus": 1, "num_gpus": 1}
        return {"num_cpus": _ENCODING_SHARE * self.cores}

    @property
    def decoding(self) -> dict[str, float]:
        """What Ray sets aside for a decoding task."""
        return {"num_cpus": 1 if self.cores is None else 1 - _ENCODING_SHARE}


def encode(
    ledger: Ledger, store: Store, cache: ScanCache, options: ExtractOptions, reporter: Reporter,
    *, started: float,
) -> Work:  # fmt: skip
    """Encode every pending image on the nodes of a cluster.

    Args:
        ledger: What is known of every image.
        store: Where features go, on a file system that every node shares; it keeps the network.
        cache: What earlier runs learned about files.
        options: What was asked for.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.

    Raises:
        ClusterError: No cluster, a node that cannot be used, or none that goes on.
        StaleFeaturesError: A node makes other features than the store holds; names it.
        DecodeError: An image is bad and ``on_error`` is ``raise``.
        ManifestError: More images are bad than ``max_errors``.
    """
    _note_packed(ledger.listing, reporter)
    pixels = 3 * store.identity.image_size**2 * len(ledger.targets)
    with cluster.joined(options.address, memory=_PARTS_IN_MEMORY * _PART_BYTES) as joined:
        ray = joined.ray
        # Before any node looks for it; at an address it is in the working copy alone so far.
        store.share_network()
        job = _job(ledger, store, options)
        # Where nodes come and go, those of now are looked at first; later ones look at themselves.
        members = nodes.require_fit(ray, partial(require_sight, job))
        pool = Pool.of(members, options.actor_cores)
        reporter.say(_described(members, pool))
        nodes.require_room(joined, pool.encoding, reporter)
        job = replace(job, cores=pool.cores)
        job = replace(job, probe=_probe(ray, job, pool, store, reporter))
        startup, began = time.monotonic() - started, time.monotonic()
        work = {node.name: NodeWork(node.name, node.cpus) for node in members}
        rows = max(1, min(_PART_ROWS, _PART_BYTES // pixels))
        with reporter.bar(len(ledger.pending), "img") as bar:
            books = Books(ray, pool.encoding, ledger, cache, store.storage, work, bar, reporter)
            _all_rounds(pool, rows, options.batch_size, books, job, partial(store.reindex, cache))
        _require_stored(ledger, store, cache)
        seconds = time.monotonic() - began
    done = [each for each in work.values() if each.parts]
    made_by = next((each for each in done if each.engine), None)
    return Work(
        startup,
        engine=made_by.engine if made_by else None,
        device=made_by.device if made_by else None,
        images_per_second=rate_of(ledger.encoded, seconds),
        bottleneck=bottleneck_of(done),
        nodes=[each.as_json() for each in done],
    )


def _job(ledger: Ledger, store: Store, options: ExtractOptions) -> Job:
    """Return what nodes are told."""
    return Job(
        number="",
        store=locate(places.absolute(store.place)),
        identity=store.identity,
        views=tuple(ledger.targets),
        engine=options.engine,
        batch_size=options.batch_size,
        threads=options.workers
        or (_WAITING if reading.is_waited_for(ledger.listing) else _READING),
        cores=None,
        probe=None,
        # Without what listing told of it, so that every node looks for itself.
        sight=replace(_sent(ledger.listing, [_seen(ledger)]), states=()),
    )


def _seen(ledger: Ledger) -> int:
    """Return the first pending row whose image is there; of none the first."""
    pending = ledger.pending
    there = (row for row in pending if reading.is_there(ledger.listing, row))
    return next(there, pending[0])


def _told(ray: ModuleType, job: Job, ledger: Ledger) -> Job:
    """Return what nodes are told in a round, with what the store has by now."""
    stored = {view: ray.put(target.index.keys) for view, target in ledger.targets.items()}
    return replace(job, number=uuid.uuid4().hex, stored=stored)


def _note_packed(listing: Manifest, reporter: Reporter) -> None:
    """Say which files every process that decodes has to read again from their start."""
    slow = reading.forward_only(listing)
    if slow:
        reporter.say(
            f"Note: on a cluster every process that decodes begins at the front of these, "
            f"{len(slow):,}: {mention(slow)}"
        )


def _described(members: Sequence[Node], pool: Pool) -> str:
    cpus, gpus = sum(node.cpus for node in members), sum(node.gpus for node in members)
    one = "one per GPU" if pool.cores is None else f"one per {counted(pool.cores, 'processor')}"
    return (
        f"Ray: {counted(len(members), 'node')} with {cpus:g} processors and {gpus:g} GPUs; "
        f"{counted(pool.actors, 'encoding actor')}, {one}"
    )


def _probe(ray: ModuleType, job: Job, pool: Pool, store: Store, reporter: Reporter) -> probe.Probe:
    """Return the store's probe; one that a node makes now where there is none."""
    kept = probe.find(store.path, store.identity, store.dim)
    if kept is not None:
        return kept
    asked = ray.remote(**pool.encoding)(probed).remote(job)
    made = nodes.result(ray, asked, "a node that encodes the probe images")
    if isinstance(made, Refusal):
        raise made.error()
    first_probe.keep(store, made, reporter)
    found: probe.Probe = made
    return found


def _parts(ledger: Ledger, pending: Sequence[int], rows: int) -> list[bytes]:
    starts = range(0, len(pending), rows)
    chosen = [pending[start : start + rows] for start in starts]
    return [packed(Part(_sent(ledger.listing, part), part)) for part in chosen]


def _sent(listing: Manifest, rows: Sequence[int]) -> Manifest:
    """Return some rows as nodes get them, whose working directory is another one."""
    root = locate(places.absolute(listing.root))
    taken = listing.take(rows)
    states = [
        state if state is None or is_address(reading.name_of(taken, row)) else state.elsewhere()
        for row, state in enumerate(taken.states)
    ]
    return replace(taken, root=root, notes=(), states=states)


def _round(ray: ModuleType, parts: Sequence[bytes], job: Job, pool: Pool, books: Books) -> str:
    """Send parts through the cluster; return what went wrong last, where Ray could not mend it."""
    import pyarrow as pa
    from ray.data.exceptions import ExecutionTimeoutError

    data = ray.data
    with ray_output.troubles() as trouble, _streaming(data):
        blocks = [pa.table({PART: pa.array([part], pa.binary())}) for part in parts]
        decoded = data.from_blocks(blocks).map_batches(
            decode, fn_kwargs={"job": job}, batch_size=None, batch_format="pyarrow", **pool.decoding
        )
        answers = decoded.map_batches(
            EncodingActor,
            fn_constructor_kwargs={"job": job},
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(
                # All that fit at once, and more where nodes come. With less to begin with, actors
                # that wait for the first images are let go, and decoding takes their place.
                min_size=min(pool.actors, len(parts)),
                # One part is stored while the network has the next.
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            # An actor that is lost comes back where there is room. Nothing waits for that: with
            # retries, Ray would keep its parts for this very actor, for ever where no node comes.
            max_restarts=-1,
            max_task_retries=0,
            **pool.encoding,
        )
        try:
            for table in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
                for cell in table[ANSWER]:
                    books.enter(unpacked(cell.as_py()))
        except ray.exceptions.RayError as error:
            return ray_output.one_line(str(error))
        except ExecutionTimeoutError as error:
            raise ClusterError(
                f"Expected nodes that encode {counted(len(books.ledger.pending), 'image')} more. "
                f"Received: no progress within {nodes.patience(ray):,.0f} s.",
                hint=cluster.LOOK,
            ) from error
    return trouble.text


@contextmanager
def _streaming(data: Any) -> Iterator[None]:
    """Have Ray Data go on without what is lost, and show nothing, as long as the context lasts."""
    context = data.DataContext.get_current()
    wanted: Mapping[str, object] = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_errored_blocks": -1,
        # What a task is taken to hand over until one has: more would let one decode at a time.
        "target_max_block_size": _PART_BYTES,
    }
    before = {name: getattr(context, name) for name in wanted}
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _all_rounds(
    pool: Pool, most: int, least: int, books: Books, job: Job, reindex: Callable[[], None]
) -> None:
    """Send what is pending through the cluster until nothing is.

    Args:
        pool: Where it goes.
        most: Images of a part at most.
        least: Images of a part at least, as long as there are as many.
        books: Where answers are entered.
        job: What is to be done.
        reindex: Looks at what the store has by now.

    Raises:
        ClusterError: A round did nothing and Ray could not mend it, or several for other trouble.
    """
    ledger, fruitless = books.ledger, 0
    while pending := ledger.pending:
        few = -(-len(pending) // (_PARTS_PER_ACTOR * pool.actors))
        parts = _parts(ledger, pending, min(most, max(least, few)))
        trouble = _round(books.ray, parts, _told(books.ray, job, ledger), pool, books)
        reindex()
        fruitless = 0 if len(ledger.pending) < len(pending) else fruitless + 1
        if fruitless >= (1 if trouble else _FRUITLESS):
            raise _no_progress(ledger, trouble or books.trouble)
        _say_again(ledger, books.reporter)


def _no_progress(ledger: Ledger, trouble: str) -> ClusterError:
    """Return that rounds did nothing, with the images that were to be done first."""
    pending = ledger.pending
    first = mention([ledger.listing.paths[index] for index in pending])
    return ClusterError(
        f"Expected nodes that encode {counted(len(pending), 'image')}: {first}. Received: none of "
        f"them; what was said last: {trouble.rstrip('.') or 'nothing'}.",
        hint=f"{cluster.LOOK} Where one of these images ends the process that reads it, take it "
        "out.",
    )


def _say_again(ledger: Ledger, reporter: Reporter) -> None:
    """Say how many images a further round takes."""
    if pending := ledger.pending:
        reporter.say(
            f"Note: {counted(len(pending), 'image')} were under way on what was lost, or in "
            "trouble; they are done again"
        )


def _require_stored(ledger: Ledger, store: Store, cache: ScanCache) -> None:
    """Wait until every shard that a node wrote is seen here.

    Raises:
        StoreError: Some are not.
    """
    keys, deadline = ledger.keys_of(OK), time.monotonic() + _SEEN_SECONDS
    while True:
        absent = sum(int((item.index.find(keys) < 0).sum()) for item in ledger.targets.values())
        if not absent:
            return
        if time.monotonic() > deadline:
            raise StoreError(
                f"Expected the features of {len(keys):,} images in {str(store.place)!r}, as nodes "
                f"wrote them. Received: {absent:,} less.",
                hint="The file system of the store must show a node's files to the others; run "
                "extract again, which encodes what is missing.",
            )
        time.sleep(1)
        store.reindex(cache)

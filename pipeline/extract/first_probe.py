"""The probe of a store that has none yet."""

from pipeline.backbones import probe
from pipeline.store.store import Store
from pipeline.system.progress import Reporter


def keep(store: Store, made: probe.Probe, reporter: Reporter) -> None:
    """Keep a probe in a store, and say what it cannot tell of rows that were there before it."""
    if any(len(item) for item in store.sets):
        reporter.say(
            "Note: the store had no probe, and has one from now on; whether its features are "
            f"still made the same way, pipeline verify {store.place} --reencode N tells"
        )
    probe.keep(store.path, made)
    store.share_network()

"""Ctrl-C, and a scheduler's SIGTERM: what was computed is stored, and the process soon ends.

Used by the program alone. Everything on disk is complete or not there, so that a process may be
ended at any moment; the seconds before are for what it has computed and not yet written.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

# From the first signal to the end, wherever the process hangs; a second signal ends it at once.
GRACE_SECONDS: Final = 1.5

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)

# What was raised for the first signal; a list, so that a handler need not rebind a name.
_raised: list[KeyboardInterrupt] = []

# Interrupts that are to be raised once more, and the seconds until then.
_again: list[threading.Timer] = []
_MOMENT: Final = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with another exit status."""


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status by the shell's rule: 128 and the signal's number."""
    is_term = isinstance(interrupt, Terminated)
    return 128 + (signal.SIGTERM if is_term else signal.SIGINT)


@contextmanager
def bounded(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """End the process soon after the first interrupt, and at once after a second.

    A thread watches, because Python looks at signals only between two instructions of the main
    thread, which may be inside a library for long.

    Args:
        grace: Seconds from the first signal to the end.
    """
    _raised.clear()
    _again.clear()
    watched, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    # One that is ignored, as by nohup, stays ignored.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise)
    threading.Thread(target=_watch, args=(watched, grace), daemon=True).start()
    sys.unraisablehook = _raise_again
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sys.unraisablehook = sys.__unraisablehook__
        for timer in _again:
            timer.cancel()


def end(status: int) -> NoReturn:
    """End an interrupted process without waiting for the threads of its libraries."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def raised() -> KeyboardInterrupt | None:
    """Return what was raised for the first signal; None where none came.

    HDF5 and other libraries make errors of their own of what is raised while they call back.
    """
    return _raised[0] if _raised else None


def _raise(number: int, frame: object) -> NoReturn:
    _raised.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
    raise _raised[-1]


def _raise_again(lost: "sys.UnraisableHookArgs") -> None:
    """Have an interrupt raised once more that came where Python can only print what is raised.

    A finalizer is such a place, and a callback of the garbage collector (JAX sets one). This
    function is one too; so it is raised from a thread, in a moment.
    """
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    timer = threading.Timer(_MOMENT, _raise_in_main, [type(lost.exc_value)])
    timer.daemon = True
    _again.append(timer)
    timer.start()


def _raise_in_main(interrupt: type[KeyboardInterrupt]) -> None:
    """Raise an interrupt in the main thread, at its next instruction."""
    import ctypes

    main = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(interrupt))


def _watch(watched: socket.socket, grace: float) -> None:
    number = _next_signal(watched)
    watched.settimeout(grace)
    with suppress(TimeoutError):
        _next_signal(watched)
    os._exit(128 + number)


def _next_signal(watched: socket.socket) -> int:
    """Wait for one of the signals that end a process; return its number."""
    while True:
        for number in watched.recv(1):
            if number in _ENDING:
                return number

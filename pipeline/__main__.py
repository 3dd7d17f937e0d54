"""``python -m pipeline``, and the program ``pipeline``."""

import signal
import sys

from pipeline.system import interrupts, streams


def main() -> int:
    """Run the command line; an interrupt outside a command ends like one inside."""
    streams.open_all()
    try:
        with interrupts.bounded():
            from pipeline.cli.main import INTERRUPTED, TERMINATED
            from pipeline.cli.main import main as command_line

            status = command_line()
    except KeyboardInterrupt as interrupt:
        interrupts.end(interrupts.status_of(interrupt))
    if status in (INTERRUPTED, TERMINATED):
        interrupts.end(status)
    # The command is over: an interrupt of the interpreter's own end has nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return status


if __name__ == "__main__":
    sys.exit(main())

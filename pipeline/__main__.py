"""``python -m pipeline``, and the program ``pipeline``."""

import signal
import sys

from pipeline import streams


def main() -> int:
    """Run the command line; an interrupt outside a command ends like one inside."""
    streams.open_all()
    try:
        from pipeline.cli import main as command_line

        return command_line()
    except KeyboardInterrupt:
        return 130
    finally:
        # The command is over: an interrupt of the interpreter's own end has nothing to save.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())

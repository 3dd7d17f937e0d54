"""The command line, with the most memory that it held; a part of ``memory.py``."""

import contextlib
import io
import json
import resource
import sys

from pipeline.cli.main import main

if __name__ == "__main__":
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([*sys.argv[1:], "--json", "--quiet"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**json.loads(out.getvalue()), "peak_bytes": peak}))
    sys.exit(status)

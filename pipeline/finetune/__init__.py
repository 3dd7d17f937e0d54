"""Stage 3: a run to a better run.

It may import ``runs`` and what lies below it, but no other stage.
"""

"""Stage 2: a store to a run.

It may import ``runs`` and what lies below it, but no other stage.
"""

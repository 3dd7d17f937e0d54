"""Stage 1: image files to a store.

It may import ``runs`` and what lies below it, but no other stage.
"""

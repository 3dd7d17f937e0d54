"""Features from and to plain files: other programs' become a store, a store becomes one file.

One file per format, behind a table in ``formats``. It may import ``copies``, ``dataset`` and
what lies below them; no backbone runs, and an image is opened for its key alone.
"""

"""Features on disk, keyed by the content of the image.

It may import ``heads``, ``images`` and what lies below them, but not ``backbones``.
"""

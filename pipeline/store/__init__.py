"""Features on disk, keyed by the content of the image.

It may import ``backbones`` and what lies below it: its record holds the identity of one.
"""

"""The report: one page that shows what a run found, with its pictures.

It may import ``pages``, ``runs`` and what lies below them, and no other verb.
"""

"""Which frozen network, with which weights: what makes features comparable.

It may import ``heads``, ``images`` and what lies below them, but not ``store``.
"""

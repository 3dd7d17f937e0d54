"""Which images are copies of one another: one picture, saved again, cut, brighter.

Stored features answer, and the pixels of the files where they are at hand. It may import ``store``,
``images`` and what lies below them.
"""

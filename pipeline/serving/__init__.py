"""A run to predictions and to exported models.

It may import ``runs`` and what lies below it, but none of the stages.
"""

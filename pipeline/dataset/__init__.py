"""Rows with labels and splits, joined with their features.

It may import ``engines``, ``store`` and what lies below them, but no run and no stage.
"""

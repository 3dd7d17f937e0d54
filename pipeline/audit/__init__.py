"""What is wrong with the data: copies, leaks, label errors, outliers, confounders.

Stored features and labels answer; no backbone runs. It may import ``runs`` and what lies below it,
and no other stage.
"""

"""What was trained: the record, its scores, the model that it stands for.

It may import ``dataset`` and what lies below it, but none of the stages that make a run.
"""

"""Whether a store, a run or an exported folder is as it was written, and the repair of what is not.

It may import ``runs`` and what lies below it, but none of the stages.
"""

"""What is asked of the machine and of the person at it: processors, signals, Keras, progress.

The lowest room. It imports nothing of this package but ``errors``.
"""

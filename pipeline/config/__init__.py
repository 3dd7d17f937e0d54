"""Every option, once: name, default, bounds and help; flags, TOML and Python are read from it.

It may import ``errors`` alone.
"""

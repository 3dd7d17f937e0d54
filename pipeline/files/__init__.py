"""What lies on disk, whatever it is about: complete when it exists, bounded when it is read.

Arrays, HDF5, CSV tables and JSON records; objects at addresses too. It may import ``system`` and
``errors``.
"""

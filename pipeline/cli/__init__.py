"""The command line: flags, tables, exit statuses; the only room that prints.

It may import every other room; nothing imports it but the face of the package.
"""

"""Image files: which there are, their bytes, their pixels.

It may import ``files``, ``config``, ``system`` and ``errors``.
"""


def __getattr__(name: str) -> object:
    # Listing images needs no Pillow; the decoder brings it in when it is first used.
    if name == "decode":
        from pipeline.images.decoder import decode

        return decode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

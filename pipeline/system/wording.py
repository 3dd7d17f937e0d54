"""Words for people: counts with their nouns."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun, in the singular or the plural.

    Example:
        >>> counted(1, "image"), counted(2000, "image"), counted(0, "class", "classes")
        ('1 image', '2,000 images', '0 classes')

    Args:
        count: How many.
        one: The noun for one.
        many: The noun for others; by default with an ``s``.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"

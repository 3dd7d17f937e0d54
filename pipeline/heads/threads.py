"""How many threads of linear algebra a fit takes: one where the rows are few."""

from contextlib import AbstractContextManager
from typing import Final

from threadpoolctl import threadpool_limits

# Entries of X up to which linear algebra has one thread: at this size threads only wait for each
# other, 1.2 s instead of 10 to 27 on two busy cores.
SMALL: Final = 2**22


def blas_threads(entries: int) -> AbstractContextManager[object]:
    """Limit linear algebra to one thread where X has few entries.

    A generator must not hold the limit while its caller works.
    """
    limits: AbstractContextManager[object] = threadpool_limits(
        1 if entries <= SMALL else None, "blas"
    )
    return limits

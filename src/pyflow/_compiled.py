"""The one way in which this package compiles a kernel: no GIL, IEEE arithmetic, machine code kept on disk."""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """`function` as machine code, made at its first call for float64 arrays in C order.

    Arithmetic is neither reordered nor contracted, so that results do not depend on the vector unit. Machine code is
    kept beside the source or in the user's cache; where neither can be written, every process compiles anew.
    Numba looks at the time stamp of the file of `function` alone: a kernel that calls another lies in the same file,
    and after a change of the options here ``__pycache__`` must go.
    """
    options = {"nogil": True, "error_model": "numpy"}  # the latter: no branch for a division by zero
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)

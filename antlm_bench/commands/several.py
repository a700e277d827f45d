"""One thing done to several names: a failure of one does not stop the others, and is not forgotten
either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from antlm_bench.errors import BenchError, IncompleteError

T = TypeVar("T")


def map_collecting_errors(names: Sequence[str], function: Callable[[str], T]) -> Iterator[T]:
    """The results of `do`, in order. Raises the error of a single name as it is; of several,
    IncompleteError.
    """
    failed: list[str] = []
    for name in names:
        try:
            yield function(name)
        except BenchError as error:
            if len(names) == 1:
                raise
            failed.append(f"  {name}: {error}")
    if failed:
        raise IncompleteError(f"{len(failed)} of {len(names)} failed:\n" + "\n".join(failed))

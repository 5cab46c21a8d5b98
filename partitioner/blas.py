"""NumPy's linear algebra on one thread, where it is thousands of small products.

Handing such a product to a second thread costs more than it gains, and OpenBLAS's threads spin between two of them: the
coder's tables took three times the CPU time.
"""

from __future__ import annotations

import threading
from typing import Any

from threadpoolctl import threadpool_limits


class OneThread:
    """A context in which BLAS takes one thread, in the whole process; several threads may be in it at a time.

    The number is the process's: the first one in sets it, the last one out sets it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limits = threadpool_limits(1, user_api="blas")
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limits.restore_original_limits()


ONE_THREAD = OneThread()

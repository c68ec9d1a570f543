"""Processes that work for this one."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

LOOK_SECONDS = 1


def end_with_parent() -> None:
    """Have this process end with the one that started it; the initializer of a pool.

    A worker whose parent was killed would wait for work forever.
    """
    parent, above = multiprocessing.parent_process(), os.getppid()
    assert parent is not None

    def watch() -> None:
        # Forked siblings hold each other's sentinels open, processes of a fork server have another
        # process above them: both are looked at.
        while not wait([parent.sentinel], timeout=LOOK_SECONDS) and os.getppid() == above:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

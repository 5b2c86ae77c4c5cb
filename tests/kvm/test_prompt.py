"""The priority of the thread that runs the event loop."""

from __future__ import annotations

import os
import threading

from tvmm.kvm.prompt import prompt_thread


def nice() -> int:
    """Of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_this_thread_and_only_within_the_block() -> None:
    """Urgent within, as before afterwards; a thread that is started within is an ordinary one."""
    seen: list[int] = []
    with prompt_thread() as changed:
        assert changed
        inside = nice()
        thread = threading.Thread(target=lambda: seen.append(nice()))
        thread.start()
        thread.join()
    assert seen == [0]
    assert inside == (-19 if os.geteuid() == 0 else 0)
    assert nice() == 0


def test_nested() -> None:
    """Who is urgent already stays so, and the outer block undoes it."""
    with prompt_thread(), prompt_thread() as changed:
        assert not changed
    assert nice() == 0

"""Who looks at a canvas and who changes it, one after the other."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from tvmm.vnc.turns import Turns


async def test_many_look_and_one_changes() -> None:
    """Whoever comes after one who wants to change it waits for that one, too."""
    turns, said = Turns(), []
    done = {name: trio.Event() for name in ("first", "second", "third")}

    async def look(name: str) -> None:
        async with turns.looking():
            said.append(f"{name} looks")
            await done[name].wait()
        said.append(f"{name} is done")

    async def change() -> None:
        async with turns.changing():
            said.append("it changes")

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(look, name)
            await wait_all_tasks_blocked()
        nursery.start_soon(change)
        await wait_all_tasks_blocked()
        nursery.start_soon(look, "third")
        await wait_all_tasks_blocked()
        assert said == ["first looks", "second looks"]
        done["first"].set()
        await wait_all_tasks_blocked()
        assert said[2:] == ["first is done"]
        done["second"].set()
        await wait_all_tasks_blocked()
        assert said[3:] == ["second is done", "it changes", "third looks"]
        done["third"].set()


async def test_who_is_cancelled_leaves_it_to_others() -> None:
    """While it waits, and while it has its turn."""
    turns = Turns()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with turns.looking(), trio.open_nursery() as inner:

                async def change() -> None:
                    async with turns.changing():
                        raise AssertionError("somebody looks")

                inner.start_soon(change)
                await wait_all_tasks_blocked()
                scope.cancel()
        with trio.fail_after(1):
            async with turns.changing():
                nursery.cancel_scope.cancel()
    with trio.fail_after(1):
        async with turns.looking():
            pass

"""What the tab key offers behind ``tvmm limit``. Called by argcomplete with what was typed so far."""

from __future__ import annotations

from typing import Any

__all__ = ["limit_words"]


def limit_words(prefix: str, parsed_args: Any = None, **context: Any) -> list[str]:
    """Machines, or the devices of the only one; behind a machine its devices; behind a device its limits."""
    from tvmm.cli.completers import machine_names
    from tvmm.cli.machines import control, named
    from tvmm.errors import TvmmError

    done = [word for word in getattr(parsed_args, "words", None) or [] if word != prefix]
    known = machine_names("")
    name = done[0] if done and done[0] in known else None
    offered = [] if done else known
    try:
        with control(named({"name": name} if name else {}), timeout=2.0) as client:
            devices = client.execute("x-query-throttle")
    except TvmmError:
        devices = []
    chosen = [one for one in devices if one["id"] in done]
    if not chosen:
        offered = [*offered, *(one["id"] for one in devices)]
    else:
        there = {word.partition("=")[0] for word in done}
        offered = [f"{limit}=" for limit in chosen[0]["limits"] if limit not in there]
        offered += [] if any("=" in word for word in done) else ["none"]
    return [word for word in offered if word.startswith(prefix)]

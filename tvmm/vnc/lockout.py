"""How many strangers may try at once, and how long they wait after a wrong guess. Pure: times are told, in seconds.

* Connections: all of them have a limit, those that have not proved who they are have lower ones, altogether and for
  each address. A stranger who only connects holds a place for `HANDSHAKE_SECONDS`, later for `LOGIN_SECONDS`, and
  cannot hold all places from one address.
* Guesses: `guesses` wrong ones are free, then each wrong one doubles the time for which the address is not let in at
  all. A right one makes them forgotten, unless its viewer may only look: it could try for more in between. The answer
  to a wrong guess is late in any case, and later while many addresses guess wrong: guesses from everywhere together
  come slowly, and nobody who knows the password waits for it.

There is no lock-out of everybody, which would be a gift to whoever wants to keep the owner out.

An address is an IPv4 address, or the 64 bits of network of an IPv6 one: a guest of a network has all of the rest for
itself. All who come through unix sockets are one.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

__all__ = ["HANDSHAKE_SECONDS", "LOGIN_SECONDS", "Limits", "Lockout", "address_key"]

HANDSHAKE_SECONDS = 10.0
"""For what needs no person: version, choice of a security type, TLS."""
LOGIN_SECONDS = 120.0
"""For all until the viewer is in: many ask for the password when they are connected."""
ADDRESSES_LIMIT = 1024
"""Addresses that are remembered. Somebody with more of them can make the oldest forgotten."""
DOUBLINGS = 16
"""Exponent from which waiting times are at their limit anyway."""


class Limits(NamedTuple):
    """What is allowed. Times in seconds."""

    viewers: int = 32
    """Connections of all kinds beyond the strangers'."""
    strangers: int = 64
    """Connections that have not proved who they are."""
    strangers_per_address: int = 4
    guesses: int = 3
    """Wrong ones that cost an address nothing but their delay."""
    first_wait: float = 5.0
    longest_wait: float = 300.0
    forgotten_after: float = 3600.0
    """Without another wrong guess."""
    delay: float = 1.0
    """Before the answer to a wrong guess."""
    longest_delay: float = 10.0
    crowd: int = 20
    """Wrong guesses a minute, from everywhere, at which the delay begins to grow."""


class _Record(NamedTuple):
    wrong: int
    last: float
    barred_until: float


def address_key(host: str) -> str:
    """What stands for `host`, an IP address or '' for a unix socket, in counts. Anything else stands for itself."""
    if not host:
        return "unix"
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


class Lockout:
    """Who may try, by addresses as `address_key` has them. `now` is any clock that does not go backwards.

    For each connection: `arrive`; then `failed` or `passed` or nothing; in the end `leave`.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - a NamedTuple
        self._limits = limits
        self._records: dict[str, _Record] = {}
        self._strangers: dict[str, int] = {}
        self._viewers = 0
        self._crowd = 0.0
        self._crowd_at = 0.0

    @property
    def strangers(self) -> int:
        """Connections that have not proved who they are."""
        return sum(self._strangers.values())

    @property
    def viewers(self) -> int:
        """Connections that have."""
        return self._viewers

    @property
    def addresses(self) -> int:
        """Addresses that are remembered, never more than `ADDRESSES_LIMIT`."""
        return len(self._records)

    def arrive(self, key: str, now: float) -> str:
        """Count a new connection, and return ''; or return the reason not to take it, which is fit for its viewer."""
        record = self._records.get(key)
        if record is not None and now < record.barred_until:
            return f"too many wrong passwords, try again in {max(1, round(record.barred_until - now))} seconds"
        limits = self._limits
        if self._viewers >= limits.viewers:
            return "there are too many viewers"
        if self.strangers >= limits.strangers or self._strangers.get(key, 0) >= limits.strangers_per_address:
            return "there are too many connections without a password"
        self._strangers[key] = self._strangers.get(key, 0) + 1
        return ""

    def passed(self, key: str, *, view_only: bool) -> bool:
        """A stranger at `key` has proved who it is. False if there are too many viewers: it has to go all the same."""
        if not view_only:
            self._records.pop(key, None)
        if self._viewers >= self._limits.viewers:
            return False
        self._forget_stranger(key)
        self._viewers += 1
        return True

    def failed(self, key: str, now: float) -> float:
        """A stranger at `key` has guessed wrong. Returns the seconds to wait before it is told."""
        limits = self._limits
        record = self._records.pop(key, None)
        if record is None or now - record.last > limits.forgotten_after:
            record = _Record(0, now, 0.0)
        wrong = record.wrong + 1
        beyond = wrong - limits.guesses
        wait = min(limits.longest_wait, limits.first_wait * (1 << min(beyond, DOUBLINGS))) if beyond >= 0 else 0.0
        while len(self._records) >= ADDRESSES_LIMIT:
            # Popped and put in again at each wrong guess: the first one is the one that was quiet for the longest time.
            del self._records[next(iter(self._records))]
        self._records[key] = _Record(min(wrong, limits.guesses + DOUBLINGS), now, now + wait)
        # Leaks at `crowd` a minute; what is in it is how many there were too many.
        leaked = max(0.0, now - self._crowd_at) * limits.crowd / 60
        self._crowd = min(max(0.0, self._crowd - leaked) + 1, 10.0 * limits.crowd)
        self._crowd_at = now
        delay = limits.delay * (1 << min(wrong - 1, DOUBLINGS)) + max(0.0, self._crowd - limits.crowd) * limits.delay
        return min(limits.longest_delay, delay)

    def leave(self, key: str, *, was_viewer: bool) -> None:
        """A connection has ended; `was_viewer` if `passed` has returned True for it."""
        if was_viewer:
            self._viewers -= 1
        else:
            self._forget_stranger(key)

    def _forget_stranger(self, key: str) -> None:
        left = self._strangers[key] - 1
        if left:
            self._strangers[key] = left
        else:
            del self._strangers[key]

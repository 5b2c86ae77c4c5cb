"""Viewers whose logins are damaged, at every security type.

    python -m fuzz.vnc_security [--runs 2000] [--seed 1]

A run is a login as a viewer makes it, right or with a wrong password, of which some bytes are changed, left out, put
in, or cut into pieces. The exchange must go on or end, raise nothing but what the session takes for a broken viewer,
keep few bytes, and let nobody in who sent a wrong password.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from fuzz.common import Watch, fail, options
from tests.vnc.viewer_ends import RsaViewer, answer_challenge, say_plain
from tvmm.errors import ProtocolError
from tvmm.vnc.passwords import Passwords
from tvmm.vnc.rsa_aes import RsaAes, RsaKey
from tvmm.vnc.security_types import Exchange, Failed, Passed, SecurityType, Send, StartTls
from tvmm.vnc.vencrypt import PLAIN, X509_PLAIN, VeNCrypt
from tvmm.vnc.vnc_auth import VncAuthentication

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT_LIMIT = 70_000
"""Bytes that an exchange may wait with: those of one message of RSA-AES."""
RIGHT, WRONG = "the-right-one", "another-one"
WARM_UP_RUNS = 200
REPORT_RUNS = 500


class Stopped(Exception):
    """The viewer has nothing more to say to this exchange."""


class DamagedLine:
    """Where a viewer says something, and the exchange hears something else, if `rate` of the time."""

    def __init__(self, exchange: Exchange, random: Random, rate: float) -> None:
        self.heard = bytearray()
        self.outcome: object = None
        self.damaged = False
        self._exchange = exchange
        self._random = random
        self._rate = rate
        self._pending = bytearray()
        self._take(exchange.start())

    def say(self, data: bytes) -> None:
        """Send, with damage, in pieces."""
        if self._random.random() < self._rate:
            mangled = self._mangle(data)
            self.damaged = self.damaged or mangled != data
            data = mangled
        while data:
            size = self._random.choice((1, 7, len(data), len(data)))
            piece, data = data[:size], data[size:]
            self._pending += piece
            try:
                steps = self._exchange.receive(self._pending)
            except ProtocolError:
                self.outcome = "broken"
                raise Stopped from None
            except Exception as error:
                fail(f"an exchange raised {error!r}")
            if len(self._pending) > KEPT_LIMIT:
                fail(f"{len(self._pending)} bytes wait")
            self._take(steps)

    def hear(self, size: int) -> bytes:
        """What there is; a viewer that waits for more is at its end."""
        if len(self.heard) < size:
            raise Stopped
        data = bytes(self.heard[:size])
        del self.heard[:size]
        return data

    def _take(self, steps: Sequence[object]) -> None:
        for step in steps:
            if isinstance(step, Send):
                self.heard += step.data
            elif isinstance(step, Passed | Failed | StartTls):
                self.outcome = step
                raise Stopped

    def _mangle(self, data: bytes) -> bytes:
        changed, random = bytearray(data), self._random
        for _ in range(random.choice((1, 1, 2, 8))):
            at = random.randrange(len(changed) + 1)
            kind = random.randrange(5)
            if kind == 0 and changed:
                changed[at % len(changed)] ^= 1 << random.randrange(8)
            elif kind == 1:
                del changed[at : at + random.choice((1, 2, 4, 16, 1000))]
            elif kind == 2:
                changed[at:at] = random.randbytes(random.choice((1, 2, 16, 300)))
            elif kind == 3 and changed:
                changed[at % len(changed)] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            else:
                changed = bytearray(changed[at:] + changed[:at])
        return bytes(changed)


def login(line: DamagedLine, number: int, viewer: RsaViewer | None, password: str) -> None:
    """What a viewer says, as far as it gets."""
    try:
        if number == VncAuthentication.number:
            answer_challenge(line, password)
        elif viewer is not None:
            viewer.login(line, "anna", password)
        else:
            line.hear(2)
            line.say(b"\0\2")
            line.hear(1)
            line.hear(4 * line.hear(1)[0])
            line.say((number).to_bytes(4, "big"))
            say_plain(line, "anna", password)
    except (Stopped, ProtocolError, ValueError, AssertionError, IndexError, TypeError):
        # The viewer's own confusion about what it heard, damaged by what it has said.
        pass


def run(seed: int, key: RsaKey, viewers: dict[int, RsaViewer]) -> str:
    """One login; how it ended."""
    random = Random(seed)
    number = random.choice((2, PLAIN, X509_PLAIN, 5, 129))
    users = {"anna": RIGHT} if random.random() < 0.5 and number != VncAuthentication.number else None
    known = Passwords(lambda: 0.0, full=RIGHT, view_only="only-to-look", users=users)
    offer: SecurityType
    if number == VncAuthentication.number:
        offer = VncAuthentication(known)
    elif number in viewers:
        offer = RsaAes(number, known, key)
    else:
        offer = VeNCrypt(known, [PLAIN, X509_PLAIN], certificate=object())
    password = RIGHT if random.random() < 0.5 else WRONG
    line = DamagedLine(offer.begin("peer"), random, random.choice((0.0, 0.3, 1.0)))
    login(line, number, viewers.get(number), password)
    outcome = line.outcome
    if isinstance(outcome, Passed):
        if password == WRONG:
            fail(f"seed {seed}: in with a wrong password")
        return "passed, damaged" if line.damaged else "passed"
    if password == RIGHT and not line.damaged and number != X509_PLAIN:
        fail(f"seed {seed}: not in with the right password: {outcome}")
    return type(outcome).__name__ if outcome is not None else "waits"


def main() -> None:
    """All runs, and the figures."""
    chosen = options(__doc__ or "", (("runs", 2000, "how many"), ("seed", 1, "the first run's")))
    key, viewers = RsaKey(), {number: RsaViewer(number, 1024) for number in (5, 129)}
    for seed in range(WARM_UP_RUNS):
        run(seed, key, viewers)
    watch = Watch()
    endings: Counter[str] = Counter()
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        endings[run(seed, key, viewers)] += 1
        if not endings.total() % REPORT_RUNS:
            print(f"{endings.total():6} runs  {watch.line()}", flush=True)
    for ending, count in endings.most_common():
        print(f"{count:6} times {ending}")
    if chosen.runs >= 500 and len(endings) < 4:
        fail("the runs did not end in different ways: this shows nothing")
    watch.judge()


if __name__ == "__main__":
    main()

"""`tvmm migrate` against control sockets of machines whose migrations are scripted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from tests.cli.fakes import running
from tests.control.fake_migration import ACTIVE, COMPLETED, FAILED, LAST_PASS, SETUP, SWITCHOVER, WHOLE
from tests.control.fakes import FakeMachine
from tvmm.cli import main
from tvmm.cli.migrate import order
from tvmm.cli.migration_follow import Follower, Interrupts
from tvmm.cli.parser import verb_parser
from tvmm.cli.verbs import find_verb
from tvmm.control.client import QmpClient
from tvmm.control.migration_info import info_of
from tvmm.errors import ConfigError, ProtocolError, UserError
from tvmm.migration.status import MigrationParameters, MigrationStatus

Capture = pytest.CaptureFixture[str]

TO = ("--to", "127.0.0.1:4444")


def leaving(machine: FakeMachine) -> FakeMachine:
    """`machine`, as one whose process ends as soon as its guest has moved."""
    machine.migration.on_end = lambda status: machine.ended.set() if status.guest == "destination" else None
    return machine


def interrupting(machine: FakeMachine, state: str, number: int = signal.SIGINT, times: int = 1) -> None:
    """Have the user press Ctrl-C `times` when the migration is in `state`."""
    left = [number] * times

    def interrupt(status: MigrationStatus) -> None:
        if status.state == state and left:
            os.kill(os.getpid(), left.pop())

    machine.migration.on_query = interrupt


def test_a_guest_moves(registry: Path, capsys: Capture) -> None:
    """The machine gets the address and no more; progress and a summary are told, although the machine is gone."""
    with running(registry, leaving(FakeMachine("web"))) as machine:
        assert main(["migrate", *TO]) == 0
    out, err = capsys.readouterr()
    assert machine.migration.started == [("tcp:127.0.0.1:4444", MigrationParameters())]
    assert out.splitlines()[0] == "web has moved to tcp:127.0.0.1:4444 in 2.11s; the guest was paused for 6.12ms"
    assert "stop 0.5ms, last pages 2.25ms" in out
    assert "tvmm: first pass: 200M sent at 400M/s" in err
    assert machine.migration.cancels == 0


def test_a_machine_that_stays(registry: Path, capsys: Capture) -> None:
    """An outcome that comes as an answer is as good as one that comes as an event."""
    with running(registry, FakeMachine("web")):
        assert main(["migrate", "web", *TO, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json(registry: Path, capsys: Capture) -> None:
    """Each line is what query-migrate answers; the last one has the outcome as well."""
    with running(registry, leaving(FakeMachine("web"))):
        assert main(["migrate", *TO, "--json"]) == 0
    out, err = capsys.readouterr()
    *lines, last = map(json.loads, out.splitlines())
    assert [line["status"] for line in lines] == ["active", "active", "device"]
    assert last == {**info_of(COMPLETED), "outcome": "moved", "exit-status": 0}
    assert err == ""


@pytest.mark.parametrize("script", [(SETUP, FAILED), (SETUP, ACTIVE, FAILED), (SETUP, ACTIVE, SWITCHOVER, FAILED)])
def test_a_guest_that_does_not_move(registry: Path, capsys: Capture, script: tuple[MigrationStatus, ...]) -> None:
    """The reason is told in one line, and where the guest is."""
    with running(registry, FakeMachine("web")) as machine:
        machine.migration.script = list(script)
        assert main(["migrate", *TO, "--quiet"]) == 2
        assert machine.run_state() == "running"
    assert capsys.readouterr().err == (
        "tvmm: web has not moved: the destination hung up in round 3; its own output says why; "
        "its guest goes on at the source\n"
    )


def test_a_failure_before_the_answer(registry: Path, capsys: Capture) -> None:
    """What fails at once has failed when the command is answered; its events are not lost."""
    with running(registry, FakeMachine("web")) as machine:
        machine.migration.script = [FAILED]
        assert main(["migrate", *TO, "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["outcome"] == "failed"


def test_nobody_knows(registry: Path, capsys: Capture) -> None:
    """A guest that may be at the destination is neither moved nor said to run here."""
    lost = FAILED._replace(guest="unknown", error="the destination does not answer", error_hint="")
    with running(registry, FakeMachine("web")) as machine:
        machine.migration.script = [SETUP, SWITCHOVER, lost]
        assert main(["migrate", *TO, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["outcome"] == "failed"
    assert "it is not known whether web has moved" in err
    assert "only if it does not run there, 'tvmm resume web'" in err


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ((SETUP, ACTIVE, LAST_PASS), "ended while it migrated (round 3), and its guest with it"),
        ((SETUP, ACTIVE, SWITCHOVER), "in the middle of the switchover; its guest may run at tcp:127.0.0.1:4444"),
    ],
)
def test_a_process_that_dies(registry: Path, capsys: Capture, script: tuple[MigrationStatus, ...], text: str) -> None:
    """An end of the connection without the last event is told as what it is."""
    with running(registry, FakeMachine("web")) as machine:
        machine.migration.script = list(script)
        machine.migration.on_query = lambda status: machine.ended.set() if status.phase == script[-1].phase else None
        assert main(["migrate", *TO, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["outcome"] == "lost"
    assert text in err


@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_cancelled(registry: Path, capsys: Capture, number: int, exit_status: int) -> None:
    """Ctrl-C gives the migration up, waits for that and says where the guest is."""
    handler = signal.getsignal(number)
    with running(registry, FakeMachine("web")) as machine:
        interrupting(machine, "active", number)
        machine.migration.script = [SETUP, *[LAST_PASS] * 100]
        assert main(["migrate", *TO, "--json"]) == exit_status
        assert machine.migration.cancels == 1
        assert machine.run_state() == "running"
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert (last["status"], last["outcome"], last["exit-status"]) == ("cancelled", "cancelled", exit_status)
    assert err == "tvmm: cancelled: the guest of web goes on at the source\n"
    assert signal.getsignal(number) is handler


def test_cancelled_too_late(registry: Path, capsys: Capture) -> None:
    """A guest that has moved has moved, whoever pressed Ctrl-C meanwhile."""
    with running(registry, leaving(FakeMachine("web"))) as machine:
        interrupting(machine, "active")
        machine.migration.too_late = True
        assert main(["migrate", *TO]) == 0
    assert capsys.readouterr().out.startswith("web has moved")


def test_cancelled_by_somebody_else(registry: Path, capsys: Capture) -> None:
    """It is no failure either."""
    with running(registry, FakeMachine("web")) as machine:
        machine.migration.on_query = lambda status: (
            machine.migration.cancel_migration() if status.state == "active" else None
        )
        assert main(["migrate", *TO, "--quiet"]) == 130
    assert "cancelled: the guest of web goes on" in capsys.readouterr().err


def test_a_user_who_does_not_wait(registry: Path, capsys: Capture) -> None:
    """The second Ctrl-C leaves, and says that nothing is known yet."""
    with running(registry, FakeMachine("web")) as machine:
        interrupting(machine, "active", times=2)
        machine.migration.too_late = True
        machine.migration.script = [SETUP, *[LAST_PASS] * 100]
        assert main(["migrate", *TO, "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["outcome"] == "unknown"
    assert "'tvmm info web' says how it ended" in err


def test_a_third_interrupt_is_not_held() -> None:
    """After the second one signals do what they did before."""
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        for count in (1, 2):
            assert signal.getsignal(signal.SIGINT) is not before
            signal.raise_signal(signal.SIGINT)
            assert interrupts.count == count
        assert signal.getsignal(signal.SIGINT) is before
    assert interrupts.first == signal.SIGINT


def test_refused(registry: Path, capsys: Capture) -> None:
    """What the machine refuses is one line and an outcome; a second migration is such a thing."""
    with running(registry, FakeMachine("web")) as machine:
        machine.migration.refusal = UserError("the guest has moved already", "there is nothing left to move")
        assert main(["migrate", *TO, "--json"]) == 2
        assert main(["migrate", "--to", "192.0.2.1:4444"]) == 2
    out, err = capsys.readouterr()
    reason = "the guest has moved already; there is nothing left to move"
    assert json.loads(out) == {"error-desc": reason, "outcome": "refused", "exit-status": 2}
    first, second = err.splitlines()
    assert first == f"tvmm: {reason}"
    assert "without TLS others can read" in second


def test_an_earlier_migration_says_nothing_about_this_one(registry: Path) -> None:
    """Events that were on their way before it began are not taken for its own."""
    with running(registry, FakeMachine("web")) as machine, QmpClient(registry / "web" / "control.sock") as client:
        machine.migration.script = [SETUP, FAILED]
        client.execute("migrate", uri="unix:/a")
        assert client.execute("query-migrate")["status"] == "failed"
        machine.migration.script = list(WHOLE)
        follower = Follower(client, interval=0.01)
        follower.start("unix:/b", {})
        seen = [info["status"] for info in follower.updates(Interrupts())]
        assert "failed" not in seen
        assert follower.status.state == "completed"
        assert follower.status.peer == "unix:/b"


class Babbler:
    """A control client of something that is no tvmm."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def execute(self, name: str, timeout: float | None = None, /, **arguments: object) -> Any:
        return {"status": "active", "ram": 7}

    def wait_event(self, *names: str, timeout: float | None = None) -> dict[str, Any] | None:
        return {"event": "MIGRATION", "data": {"status": "active"}}


def test_what_is_no_status() -> None:
    """A machine that talks nonsense has broken the protocol, and nobody waits for its end."""
    follower = Follower(cast("QmpClient", Babbler()))
    follower.start("unix:/a", {})
    with pytest.raises(ProtocolError, match="no MigrationInfo"):
        next(follower.updates(Interrupts()))


def test_every_option_reaches_the_machine(registry: Path) -> None:
    """What is given goes along, with this process's idea of relative paths."""
    arguments = (
        "--to b.example:4444 --max-downtime 50ms --bandwidth 1G --connections 4 --timeout 2m --compress zstd --verify "
        "--tls --keys certs --tls-hostname b --copy-storage"
    ).split()
    with running(registry, FakeMachine("web")) as machine:
        assert main(["migrate", "web", *arguments, "--quiet"]) == 0
        assert main(["migrate", "web", "--to", "unix:there", "--quiet"]) == 0
    assert machine.migration.started == [
        (
            "tcp:b.example:4444",
            MigrationParameters(
                *(50, 1 << 30, 4, 120, "zstd", True),
                tls=True,
                keys=os.path.abspath("certs"),
                tls_hostname="b",
                copy_storage=True,
            ),
        ),
        (f"unix:{os.path.abspath('there')}", MigrationParameters()),
    ]


def test_what_is_not_given_is_not_sent() -> None:
    """Parameters that a client of the control socket has set stay as they are."""
    assert order({"to": "[::1]:1"}) == ("tcp:[::1]:1", {})
    assert order({"to": "h:1", "timeout": "0", "pair": "7-a"})[1] == {"x-timeout": 0.0, "x-pair": "7-a"}
    assert order({"to": "h:1", "insecure": True, "compress": "off"})[1] == {
        "multifd-compression": "none",
        "x-insecure": True,
    }


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"to": "b.example"}, "--to 'b.example' has no port"),
        ({"to": "h:1", "max_downtime": "0"}, "max downtime 0ms leaves no time to move"),
        ({"to": "h:1", "max_downtime": "1 parsec"}, "max downtime '1 parsec' is not a duration"),
        ({"to": "h:1", "bandwidth": "fast"}, "bandwidth 'fast' is not a size"),
        ({"to": "h:1", "connections": "65"}, "connections 65 is out of range"),
        ({"to": "h:1", "compress": "zst"}, "unknown compression 'zst'; did you mean 'zstd'?"),
        ({"to": "h:1", "keys": "certs"}, "--keys has no meaning without --tls"),
    ],
)
def test_wrong_options(options: dict[str, Any], complaint: str) -> None:
    """They are told before any machine is looked for."""
    with pytest.raises(ConfigError) as caught:
        order(options)
    assert complaint in str(caught.value)


def test_examples_can_be_ordered() -> None:
    """Every example of the help text is a command line that a machine could be asked to carry out."""
    verb = find_verb("migrate")
    assert verb is not None
    parser = verb_parser(verb)
    lines = [line.split() for line in (parser.epilog or "").splitlines() if line.startswith("  tvmm migrate ")]
    assert len(lines) >= 3
    for _, _, *arguments in lines:
        assert "--recover" in arguments or order(parser.options(arguments))[0]


def test_without_an_address(capsys: Capture) -> None:
    """--to has to be there."""
    assert main(["migrate", "web"]) == 2
    assert "--to" in capsys.readouterr().err


def test_rich_is_imported_for_the_panel_alone() -> None:
    """No other verb, and no migration without a terminal, pays for it."""
    code = (
        "import sys, tvmm.cli.migrate; from tvmm.cli import main; from tvmm.cli.migration_display import choose; "
        "main(['ps']); choose(as_json=True, quiet=False); sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_stop_of_a_machine_that_waits(registry: Path, capsys: Capture) -> None:
    """There is no guest to ask: it ends."""
    with running(registry, FakeMachine("web")) as machine:
        machine._state = "inmigrate"
        assert main(["ps"]) == 0
        assert "inmigrate" in capsys.readouterr().out
        assert main(["stop"]) == 0
        assert machine.button_presses == 0
    assert capsys.readouterr().out == "web ended: it waited for a guest\n"


@pytest.mark.parametrize("state", ["finish-migrate", "postmigrate"])
def test_stop_of_a_guest_that_has_moved(registry: Path, capsys: Capture, state: str) -> None:
    """Its button is not here any more, and what is left is not ended unasked."""
    with running(registry, FakeMachine("web")) as machine:
        machine._state = state
        assert main(["stop"]) == 2
        assert not machine.ended.is_set()
    assert "stop it there; 'tvmm stop web --force' ends what is left here" in capsys.readouterr().err


def test_info_of_a_migration(registry: Path, capsys: Capture) -> None:
    """The overview tells of the last one, if there was one."""
    with running(registry, FakeMachine("web")) as machine:
        assert main(["info"]) == 0
        assert "migration" not in capsys.readouterr().out
        machine.migration.status = FAILED._replace(phase="round 3")
        assert main(["info"]) == 0
        assert "status failed, phase round 3, to tcp:127.0.0.1:4444, error the destination" in capsys.readouterr().out
        machine.migration.status = SETUP._replace(state="none", incoming=True, peer="", listening="tcp:[::]:7")
        assert main(["info", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["migration"]
    assert told == {"status": "none", "phase": "connecting", "listening": "tcp:[::]:7"}

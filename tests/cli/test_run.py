"""`tvmm run`: its configuration, its signals, its end."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest
import trio

from tests.cli.fakes import FakeGuest
from tvmm.cli import main
from tvmm.cli.parser import verb_parser
from tvmm.cli.run import Ending, configure, exit_status, farewell
from tvmm.cli.session import supervise
from tvmm.cli.verbs import find_verb
from tvmm.config.machine import MachineConfig
from tvmm.outcome import Outcome

GRACE = MachineConfig(powerdown_timeout_s=10.0)


def test_a_machine_is_always_registered() -> None:
    """Without a name it gets one from the process, with stdio as its serial port."""
    config = configure({}, {}, 0, 4711)
    assert config.name == "vm-4711"
    assert config.runtime_dir == "/run/tvmm"
    assert config.serial.kind == "stdio"
    named = configure({"name": "web"}, {"XDG_RUNTIME_DIR": "/run/user/7"}, 7, 1)
    assert named.name == "web"
    assert named.runtime_dir == "/run/user/7/tvmm"


def test_options_win_over_the_file(tmp_path: Path) -> None:
    """The file fills in what the command line does not say; its serial port wins over the default."""
    path = tmp_path / "vm.toml"
    path.write_text('name = "filed"\nmemory = "1G"\nserial = "none"\npaused = true\n')
    config = configure({"config": str(path), "memory": "64M"}, {}, 0, 1)
    assert config.name == "filed"
    assert config.memory.size == 64 << 20
    assert config.serial.kind == "none"
    assert config.paused


@pytest.mark.parametrize(
    ("options", "serial", "port"),
    [
        ({"device": ["virtio-console,chardev=stdio"]}, "none", "stdio"),
        ({"device": ["virtio-console", "virtserialport,chardev=stdio"]}, "none", "none"),
        ({"device": ["virtio-console,chardev=pty"]}, "stdio", "pty"),
        ({"device": ["virtio-console,chardev=stdio"], "serial": "pty"}, "pty", "stdio"),
        ({"device": ["virtio-console"], "serial": "none"}, "none", "none"),
    ],
)
def test_a_console_port_may_have_the_terminal(options: dict[str, object], serial: str, port: str) -> None:
    """The serial line has the terminal unless it is connected elsewhere, or a console port wants it."""
    config = configure(options, {}, 0, 1)
    assert config.serial.kind == serial
    assert config.consoles[0].ports[0].chardev.kind == port


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["--disk", "help"], ["--disk FILE[,key=value]", "  cache=<choice> ", "one of none, writeback, unsafe"]),
        (
            ["--net", "help"],
            ["--net none, or --net tap|user|stream[,key=value]", "  mac=<address> ", "by the machine's name"],
        ),
        (["--net", "tap,help"], ["  ifname=<name> "]),
        (["--vnc", "help"], ["--vnc HOST:PORT|unix:PATH|:DISPLAY|none[,key=value]", "  tls=<boolean> "]),
        (["--device", "help"], ["isa-debug-exit ", "virtio-blk-pci ", "virtserialport ", "NAME,help lists"]),
        (["--device", "virtio-rng,help"], ["virtio-rng: source of random bytes", "  max-bytes=<size> "]),
        (["--device", "virtio-net-pci,?"], ["virtio-net-pci: ", "  queue-size=<integer> "]),
    ],
)
def test_help_on_values(arguments: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """'help' in place of a value lists what there is, with defaults and ranges, and nothing is started."""
    assert main(["run", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in lines:
        assert line in out


def test_examples_are_machines() -> None:
    """Every example of `tvmm run --help` that reads no file of its own describes a machine."""
    verb = find_verb("run")
    assert verb is not None
    parser = verb_parser(verb)
    lines = [line.split("   ")[0] for line in (parser.epilog or "").splitlines() if line.startswith("  tvmm run --")]
    found = [parser.options(shlex.split(line)[2:]) for line in lines if "help" not in line and ".toml" not in line]
    assert any("disk" in options for options in found)
    assert any("net" in options for options in found)
    for options in found:
        assert configure(options, {}, 0, 1).name


def ending(kind: str, status: int = 0, report: str = "", number: int = 0) -> Ending:
    """An ending as `supervise` gives it."""
    return Ending(Outcome(kind, status, report), number)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (ending("poweroff"), 0),
        (ending("reset"), 0),
        (ending("crashed", 3), 3),
        (ending("debug-exit", 85), 85),
        (ending("quit"), 0),
        (ending("quit", number=signal.SIGTERM), 143),
        (ending("poweroff", number=signal.SIGTERM), 0),
        (ending("migrated", 4, "tcp:b:4444"), 4),
        (ending("migrated", 4, number=signal.SIGTERM), 4),
        (ending("crashed", 3, number=signal.SIGINT), 3),
        (Ending(None, signal.SIGINT), 130),
    ],
)
def test_exit_status(end: Ending, status: int) -> None:
    """A signal counts only if it took the signal to end the machine."""
    assert exit_status(end) == status


@pytest.mark.parametrize(
    ("end", "lines"),
    [
        (ending("poweroff"), []),
        (ending("quit"), ["the machine was ended"]),
        (ending("quit", number=signal.SIGHUP), ["ended by SIGHUP"]),
        (Ending(None, signal.SIGTERM), ["ended by SIGTERM before the guest ran"]),
        (ending("reset"), ["the guest reset the machine"]),
        (ending("halted"), ["the guest halted for good"]),
        (ending("crashed", 3, "triple fault on vCPU 0\nrip 0x1000"), [
            "the guest crashed: triple fault on vCPU 0", "rip 0x1000"]),
        (ending("debug-exit", 3), ["the guest ended the machine through isa-debug-exit with status 3"]),
        (ending("migrated", 4, "tcp:b:4444\nin 2.1s, paused for 6.1ms"), [
            "the guest has moved to tcp:b:4444", "in 2.1s, paused for 6.1ms"]),
        (ending("migrated", 4), ["the guest has moved"]),
        (ending("vanished"), ["the machine ended: vanished"]),
    ],
)  # fmt: skip
def test_farewell(end: Ending, lines: list[str]) -> None:
    """Nothing is said of a guest that powered off; everything else has a line."""
    assert farewell(end) == lines


async def test_a_guest_that_ends_by_itself() -> None:
    """Without signals the outcome is the machine's."""
    guest = FakeGuest(ends=Outcome("poweroff"))
    said: list[str] = []
    assert await supervise(guest, GRACE, said.append) == Ending(Outcome("poweroff"), 0)
    assert guest.closed
    assert said == []


async def test_the_first_signal_presses_the_button() -> None:
    """A guest that heeds it powers off; the user hears how long it has."""
    guest = FakeGuest(heeds=True)
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_when_started, guest, signal.SIGTERM)
        assert await supervise(guest, GRACE, said.append) == Ending(Outcome("poweroff"), 0)
    assert guest.button_presses == 1
    assert said == ["SIGTERM: asked the guest to power off, it has 10s; a second signal ends it at once"]


async def test_a_guest_that_does_not_heed_it(autojump_clock: trio.testing.MockClock) -> None:
    """At the end of the grace period the machine is ended, by the signal that asked first."""
    guest = FakeGuest()
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_when_started, guest, signal.SIGINT)
        begin = trio.current_time()
        assert await supervise(guest, GRACE, said.append) == Ending(Outcome("quit"), signal.SIGINT)
    assert trio.current_time() - begin == pytest.approx(10)
    assert said[-1] == "the guest did not power off within 10s"
    assert guest.closed


async def test_a_second_signal_ends_it() -> None:
    """The exit status is that of the second signal; nobody waits for the grace period."""
    guest = FakeGuest()
    said: list[str] = []
    async with trio.open_nursery() as nursery:

        async def twice() -> None:
            await kill_when_started(guest, signal.SIGINT)
            while not guest.button_presses:
                await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGTERM)

        nursery.start_soon(twice)
        assert await supervise(guest, GRACE, said.append) == Ending(Outcome("quit"), signal.SIGTERM)
    assert len(said) == 1


async def test_a_second_hangup_counts_for_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The kernel and the shell may both send SIGHUP; the guest keeps its grace period."""
    guest = FakeGuest()
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def twice() -> None:
            await kill_when_started(guest, signal.SIGHUP)
            while not guest.button_presses:
                await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGHUP)

        nursery.start_soon(twice)
        assert await supervise(guest, GRACE, lambda text: None) == Ending(Outcome("quit"), signal.SIGHUP)
    assert trio.current_time() - begin == pytest.approx(10)


async def test_a_signal_while_the_machine_is_made() -> None:
    """There is no guest to ask yet: the making is given up."""
    guest = FakeGuest(stuck_while_made=True)
    async with trio.open_nursery() as nursery:

        async def kill() -> None:
            await guest.made.wait()
            os.kill(os.getpid(), signal.SIGTERM)

        nursery.start_soon(kill)
        assert await supervise(guest, GRACE, lambda text: None) == Ending(None, signal.SIGTERM)


async def test_a_guest_that_lives_elsewhere_by_this_machine() -> None:
    """One signal does not kill it over there."""
    guest = FakeGuest()
    guest.needed_elsewhere = True
    said: list[str] = []
    async with trio.open_nursery() as nursery:

        async def twice() -> None:
            await kill_when_started(guest, signal.SIGINT)
            while not said:
                await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGTERM)

        nursery.start_soon(twice)
        assert await supervise(guest, GRACE, said.append) == Ending(Outcome("quit"), signal.SIGTERM)
    assert len(said) == 1
    assert "it would die with this" in said[0]


async def test_a_guest_that_cannot_be_asked() -> None:
    """If the button cannot be pressed, the first signal ends the machine."""
    guest = FakeGuest()
    guest.refusal = "the guest is paused"
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_when_started, guest, signal.SIGTERM)
        assert await supervise(guest, GRACE, said.append) == Ending(Outcome("quit"), signal.SIGTERM)
    assert said == ["SIGTERM: the guest is paused; ending the machine"]


async def test_ignored_signals_stay_ignored() -> None:
    """Under nohup SIGHUP does nothing, and handlers are as before afterwards."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        guest = FakeGuest()
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                await guest.started.wait()
                os.kill(os.getpid(), signal.SIGHUP)
                await trio.testing.wait_all_tasks_blocked()
                assert not guest.button_presses
                guest.quit()

            nursery.start_soon(kill)
            assert await supervise(guest, GRACE, lambda text: None) == Ending(Outcome("quit"), 0)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_all_signals_ignored() -> None:
    """Who ignores all of them gets a machine without a watch."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        guest = FakeGuest(ends=Outcome("poweroff"))
        assert await supervise(guest, GRACE, lambda text: None) == Ending(Outcome("poweroff"), 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def test_a_paused_machine_is_not_started() -> None:
    """With --paused the machine waits for somebody else to resume it."""
    guest = FakeGuest(ends=Outcome("quit"))
    await supervise(guest, GRACE._replace(paused=True), lambda text: None)
    assert not guest.started.is_set()


@pytest.mark.parametrize(
    ("serial", "said"), [("pty", ["the serial port is at pty:/dev/pts/7"]), ("file=log", []), ("stdio", [])]
)
async def test_a_serial_port_to_open_is_told(serial: str, said: list[str]) -> None:
    """The user learns the name of a terminal or socket that did not have one before."""
    guest = FakeGuest(ends=Outcome("poweroff"))
    guest.backend_path = "/dev/pts/7"
    heard: list[str] = []
    await supervise(guest, MachineConfig.parse(serial=serial), heard.append)
    assert heard == said


async def test_cancellation_leaves_the_machine() -> None:
    """Whoever cancels the supervision gets a machine that is closed."""
    guest = FakeGuest()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervise, guest, GRACE, lambda text: None)
            await guest.started.wait()
            scope.cancel()
    assert guest.closed


async def kill_when_started(guest: FakeGuest, number: int) -> None:
    """Send this process a signal once the guest runs."""
    await guest.started.wait()
    os.kill(os.getpid(), number)

"""The registry of running machines: names, locks, what a killed process leaves behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.names import NAME_LIMIT, check_name
from tvmm.control.registry import (
    MachineEntry,
    find,
    is_process,
    machines,
    register,
    remove_stale,
    runtime_directory,
    start_ticks,
)
from tvmm.errors import HostError, UserError

HOLDER = """
import sys
from pathlib import Path
from tvmm.control.registry import register
from tvmm.errors import UserError
try:
    with register(Path(sys.argv[1]), sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print("refused", error, flush=True)
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base directory that does not exist yet."""
    return tmp_path / "run"


def spawn(base: Path, name: str) -> subprocess.Popen[str]:
    """A process that registers `name` and keeps it until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(base), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    """What the process says once it knows whether it has the name."""
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def held(base: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `name`."""
    with spawn(base, name) as process:
        try:
            assert first_line(process) == "held\n"
            yield process
        finally:
            process.kill()


def killed(base: Path, name: str) -> int:
    """Register `name` in a process that is killed the hard way; returns its pid."""
    with held(base, name) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return process.pid


def test_a_machine_comes_and_goes(base: Path) -> None:
    """Within the block the machine is listed with its process; afterwards nothing is left of it."""
    with register(base, "alpha") as paths:
        [entry] = machines(base)
        assert entry.name == "alpha"
        assert entry.alive
        assert entry.pid == os.getpid()
        assert entry.paths == paths
        assert is_process(entry)
        assert paths.control == base / "alpha" / "control.sock"
        assert paths.console.parent == paths.directory
        record = json.loads((paths.directory / "pid").read_text())
        assert record.keys() == {"pid", "start_ticks", "name", "started"}
        assert record["name"] == "alpha"
        assert stat.S_IMODE(os.stat(paths.directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(base).st_mode) == 0o700
        paths.control.touch()
    assert machines(base) == []
    assert not paths.directory.exists()


def test_an_error_in_the_block_cleans_up_too(base: Path) -> None:
    """The name is free again however the block ends."""
    with pytest.raises(KeyError), register(base, "alpha"):
        raise KeyError
    assert not (base / "alpha").exists()


def test_no_registry_no_machines(base: Path) -> None:
    """Where nothing was ever registered, nothing is listed and nothing is created."""
    assert machines(base) == []
    assert remove_stale(base) == []
    assert not base.exists()


def test_name_in_use_by_another_process(base: Path) -> None:
    """A live machine's name is refused with the pid that has it, and the machine is not disturbed."""
    with held(base, "alpha") as process:
        with pytest.raises(UserError, match=f"pid {process.pid}"), register(base, "alpha"):
            pass
        [entry] = machines(base)
        assert entry.alive
        assert entry.pid == process.pid


def test_name_in_use_in_this_process(base: Path) -> None:
    """Two machines in one process cannot share a name, but can have two."""
    with register(base, "alpha"), register(base, "beta"):
        with pytest.raises(UserError, match="already running"), register(base, "alpha"):
            pass
        assert [entry.name for entry in machines(base)] == ["alpha", "beta"]


def test_killed_machine_is_stale(base: Path) -> None:
    """After kill -9 the entry is there, not alive, until somebody cleans up."""
    pid = killed(base, "alpha")
    [entry] = machines(base)
    assert not entry.alive
    assert entry.pid == pid
    assert not is_process(entry)
    with pytest.raises(UserError, match="not running"):
        find(base, "alpha")
    assert remove_stale(base) == [entry]
    assert machines(base) == []
    assert not entry.paths.directory.exists()


def test_name_of_a_killed_machine_can_be_had(base: Path) -> None:
    """The next machine of that name takes the directory over, without the old sockets."""
    killed(base, "alpha")
    (base / "alpha" / "control.sock").touch()
    with register(base, "alpha") as paths:
        [entry] = machines(base)
        assert entry.alive
        assert entry.pid == os.getpid()
        assert not paths.control.exists()


def test_cleaning_leaves_live_machines_alone(base: Path) -> None:
    """remove_stale removes the dead and nothing else."""
    killed(base, "dead")
    with register(base, "alive"):
        assert [entry.name for entry in remove_stale(base)] == ["dead"]
        assert [entry.name for entry in machines(base)] == ["alive"]


def test_many_processes_want_one_name(base: Path) -> None:
    """Of several processes that start at once under the name of a killed one, exactly one gets it."""
    killed(base, "alpha")
    with ExitStack() as stack:
        processes = [stack.enter_context(spawn(base, "alpha")) for _ in range(6)]
        lines = [first_line(process) for process in processes]
        assert sorted(line.split()[0] for line in lines) == ["held"] + ["refused"] * 5
        [entry] = machines(base)
        assert entry.pid == processes[lines.index("held\n")].pid
        for process in processes:
            process.kill()


def test_probing_does_not_disturb_a_start(base: Path) -> None:
    """However often somebody lists the machines, a free name can be registered."""
    with held(base, "other"):
        for _ in range(50):
            with register(base, "alpha"):
                assert len(machines(base)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "\udcff", "null"])
def test_pid_file_that_says_nothing(base: Path, text: str) -> None:
    """A pid file that was cut short or tampered with leaves an entry without a pid."""
    killed(base, "alpha")
    (base / "alpha" / "pid").write_bytes(os.fsencode(text))
    [entry] = machines(base)
    assert (entry.alive, entry.pid) == (False, 0)
    assert not is_process(entry)


def test_pid_of_another_process_is_told_apart(base: Path) -> None:
    """A pid that was given to another process since is not taken for the machine's."""
    with register(base, "alpha"):
        [entry] = machines(base)
    assert is_process(entry)
    assert not is_process(entry._replace(start_ticks=entry.start_ticks + 1))
    assert not is_process(entry._replace(pid=0))
    assert not is_process(entry._replace(pid=1 << 22, start_ticks=0))


def test_start_ticks_of_a_program_with_an_odd_name(tmp_path: Path) -> None:
    """The program's name in /proc/PID/stat may hold spaces and parentheses; no process at all gives 0."""
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        ticks = start_ticks(process.pid)
        assert start_ticks(os.getpid()) <= ticks
    assert start_ticks(process.pid) == 0


def test_find(base: Path) -> None:
    """A machine is found by its name, or without one if it is the only one."""
    with pytest.raises(UserError, match="no machine is running"):
        find(base, None)
    with register(base, "web-server"):
        assert find(base, "web-server").name == "web-server"
        assert find(base, None).name == "web-server"
        with pytest.raises(UserError, match="did you mean 'web-server'"):
            find(base, "web-sever")
        with pytest.raises(UserError, match="tvmm ps"):
            find(base, "zzz")
        with register(base, "database"), pytest.raises(UserError, match="database, web-server"):
            find(base, None)
    with pytest.raises(UserError, match="tvmm run"):
        find(base, "web-server")


@pytest.mark.parametrize("name", ["a", "A9", "web.example-1_x", "_", "x" * NAME_LIMIT, "9"])
def test_good_names(name: str) -> None:
    """Letters, digits, dots, underscores and hyphens make a name."""
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".lock", "-a", "a/b", "a b", "a\0", "\u00e9", "a\n", "x" * (NAME_LIMIT + 1), '"']
)
def test_bad_names(base: Path, name: str) -> None:
    """What could leave the directory, be taken for an option or break a line is refused, and nothing is
    made."""
    with pytest.raises(UserError), register(base, name):
        pass
    assert not base.exists()


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=70))
def test_any_name_is_safe_or_refused(name: str) -> None:
    """A name that passes is one path component that stays below the base, and JSON needs no escape for it."""
    try:
        check_name(name)
    except UserError:
        return
    assert os.path.normpath(os.path.join("/base", name)) == f"/base/{name}"
    assert json.dumps(name) == f'"{name}"'


def test_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """A base that leaves no room for the sockets is refused with the limit, before anything is made."""
    base = tmp_path / ("d" * 90)
    with pytest.raises(UserError, match="at most 107"), register(base, "alpha"):
        pass
    assert not base.exists()


def test_file_in_the_place_of_a_machine(base: Path) -> None:
    """Something else of the machine's name is in the way, and stays."""
    base.mkdir(mode=0o700)
    (base / "alpha").write_text("precious")
    with pytest.raises(HostError, match="in the way"), register(base, "alpha"):
        pass
    assert (base / "alpha").read_text() == "precious"
    assert machines(base) == []


def test_other_directories_are_left_alone(base: Path) -> None:
    """A base that is somebody's home is not cleaned of what tvmm did not make."""
    base.mkdir(mode=0o700)
    (base / "photos").mkdir()
    (base / "photos" / "cat.png").touch()
    (base / "locks").mkdir()
    (base / "locks" / "lock").mkdir()
    killed(base, "alpha")
    (base / "alpha" / "notes").touch()
    remove_stale(base)
    assert machines(base) == []
    assert (base / "photos" / "cat.png").exists()
    assert (base / "alpha" / "notes").exists()


def test_registry_that_vanished_meanwhile(base: Path) -> None:
    """A machine ends in peace although somebody removed its directory, and spares the one that has its name
    now."""
    with register(base, "alpha") as paths:
        for file in paths.directory.iterdir():
            file.unlink()
        paths.directory.rmdir()
        with register(base, "alpha") as others:
            assert others.directory.exists()
            [entry] = machines(base)
            assert entry.alive
    with register(base, "alpha") as first:
        first_life = os.stat(first.directory / "lock")
        os.rename(first.directory, base / "moved")
        second = register(base, "alpha")
        second.__enter__()
        assert not os.path.samestat(first_life, os.stat(base / "alpha" / "lock"))
    assert (base / "alpha" / "pid").exists()
    second.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("environment", "uid", "expected"),
    [
        ({}, 0, "/run/tvmm"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/tvmm"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/tvmm"),
        ({}, 7, "/tmp/tvmm-7"),
        ({"TVMM_RUNTIME_DIR": "/x", "XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/x"),
        ({"TVMM_RUNTIME_DIR": "/x"}, 0, "/x"),
    ],
)
def test_runtime_directory(environment: dict[str, str], uid: int, expected: str) -> None:
    """The user's choice first, then root's place, the session's, and one of the user's own."""
    assert runtime_directory(environment, uid) == Path(expected)


def test_entries_sort_by_name(base: Path) -> None:
    """Machines are listed by name."""
    with register(base, "b"), register(base, "a"), register(base, "c"):
        listed = machines(base)
    assert [entry.name for entry in listed] == ["a", "b", "c"]
    assert all(isinstance(entry, MachineEntry) for entry in listed)


def test_what_registering_imports(base: Path) -> None:
    """Registering a machine comes before its first instruction: it loads no json nor anything else slow."""
    code = (
        "import sys, trio; from pathlib import Path; before = set(sys.modules)\n"
        "import tvmm.control.registry as registry\n"
        "with registry.register(Path(sys.argv[1]), 'alpha'): pass\n"
        "print(*{name for name in sys.modules if not name.startswith('tvmm')} - before - {'fcntl'})"
    )
    command = [sys.executable, "-c", code, str(base)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""

"""The real program, told to run what cannot run: one line on standard error, status 2, nothing left behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.images import EM_ARM, Load, bzimage, elf32, elf64, xen_note
from tests.support.process import call, command
from tvmm.control.registry import machines

pytestmark = pytest.mark.guest

NOBODY = 65534
CODE = [Load(0x10_0000, b"\xf4" * 64)]
KERNEL = elf64(CODE, entry=0x10_0000, notes=xen_note(0x10_0000))

IMAGES = {
    "a truncated ELF": (KERNEL[:150], "truncated"),
    "an empty file": (b"", "empty"),
    "a 32-bit ELF": (elf32(CODE, entry=0x10_0000), "32-bit ELF"),
    "an ARM ELF": (elf64(CODE, entry=0x10_0000, machine=EM_ARM), "x86-64"),
    "an ELF above its memory": (elf64([Load(1 << 30, b"\xf4")], entry=1 << 30, notes=xen_note(1 << 30)), "memory"),
    "an old bzImage": (bzimage(version=0x205), "2.06"),
    "a truncated bzImage": (bzimage()[:1000], "truncated"),
    "a text file": (b"root:x:0:0\n" * 99, "no known kernel format"),
    "a gzip file": (b"\x1f\x8b\x08\0" * 99, "gzip"),
}


def refused(*options: str, under: tuple[str, ...] = (), **settings: object) -> str:
    """The one line that `tvmm run` says with status 2."""
    status, out, err = call("run", "--memory", "64M", *options, under=under, **settings)
    assert (status, out) == (2, ""), err
    assert err.startswith("tvmm: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("what", IMAGES)
def test_kernels_that_are_none(what: str, tmp_path: Path, registry: Path) -> None:
    """The line names the file and what is wrong with it."""
    image, words = IMAGES[what]
    path = tmp_path / "kernel"
    path.write_bytes(image)
    line = refused("--kernel", str(path))
    assert str(path) in line
    assert words in line
    assert machines(registry) == []


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    """An initrd larger than memory, an empty one, and one that does not exist."""
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(KERNEL)
    options = ("--kernel", str(kernel), "--initrd", str(initrd))
    assert f"no such initrd: {initrd}" in refused(*options)
    initrd.touch()
    assert "initrd is empty" in refused(*options)
    os.truncate(initrd, 65 << 20)
    assert "does not fit" in refused(*options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kernel", "/nonexistent/vmlinuz"], "no such kernel: /nonexistent/vmlinuz"),
        (["--kernel", "/"], "directory"),
        (["--kernel", "/dev/zero"], "/dev/zero"),
        (["--append", "x" * 70_000], "65535"),
        (["--memory", "0"], "too small"),
        (["--memory", "1M"], "too small"),
        (["--memory", "4097T"], "more than the host's"),
        (["--memory", "9" * 30 + "G"], "more than the host's"),
        (["--memory", "lots"], "lots"),
        (["--cpus", "0"], "from 1 to"),
        (["--cpus", "10000"], "from 1 to"),
        (["--cpus", "1.5"], "1.5"),
        (["--nmae", "web"], "did you mean '--name'?"),
        (["--device", "isa-debug-exti"], "isa-debug-exit"),
        (["--device", "isa-debug-exit,iobase=0x3f8"], "overlaps serial0"),
        (["--device", "isa-debug-exit,base=1"], "base"),
        (["--name", "../etc"], "'../etc'"),
        (["--name", os.fsdecode(b"\xff")], "cannot name a machine"),
        (["--serial", "file=/"], "is a directory"),
        (["--serial", "file=/nonexistent/log"], "No such file"),
        (["--serial", "file=/dev/null"], "not a regular file"),
        (["--serial", f"unix={__file__}"], "not a socket"),
        (["--serial", f"pty,link={__file__}"], "no link to a pseudo-terminal"),
        (["--serial", "tcp=127.0.0.1:99999"], "out of range"),
        (["--serial", "tcp=nonexistent.invalid:0"], "nonexistent.invalid"),
        (["--config", "/nonexistent.toml"], "cannot be read"),
    ],
)
def test_options_that_are_wrong(options: list[str], words: str) -> None:
    """The line says what is wrong, and where it can, what would be right."""
    assert words in refused(*options)


def test_a_kernel_that_is_a_pipe(tmp_path: Path) -> None:
    """A name that nobody writes to does not make tvmm wait."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert str(path) in refused("--kernel", str(path))


def test_a_control_socket_in_the_way() -> None:
    """What is in the place of the control socket stays, and the machine does not run without its socket."""
    status, _, err = call("run", "--control", __file__)
    assert status == 2
    assert err.endswith(f"{__file__} is in the way: it is not a socket; move it away or choose another path\n")


@pytest.mark.parametrize("place", ["a file", "a foreign directory", "an open directory", "nothing possible"])
def test_a_runtime_directory_that_cannot_be_used(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others could change is not trusted, for `run` as for `ps`."""
    path = tmp_path / "run"
    words = {
        "a file": "not a directory",
        "a foreign directory": "belongs to another user",
        "an open directory": "others may write",
        "nothing possible": "cannot use the machine directory",
    }[place]
    if place == "a file":
        path.touch()
    elif place == "nothing possible":
        path = Path("/proc/tvmm/run")
    else:
        path.mkdir(mode=0o700)
        if place == "an open directory":
            path.chmod(0o777)
        elif os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        else:
            path = Path("/")  # which is root's
    monkeypatch.setenv("TVMM_RUNTIME_DIR", str(path))
    line = refused()
    assert words in line
    assert str(path) in line
    if place != "nothing possible":
        assert call("ps") == (2, "", line)


def test_no_permission_for_kvm(registry: Path) -> None:
    """One who may not open /dev/kvm reads how to get the right."""
    under: tuple[str, ...] = ()
    if os.geteuid() == 0:
        # Another user who may read everything (this interpreter may lie in root's home) but write nothing.
        registry.mkdir(mode=0o700)
        os.chown(registry, NOBODY, NOBODY)
        who = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
        reading = "-all,+dac_read_search"
        under = ("setpriv", *who, "--inh-caps", reading, "--ambient-caps", reading)
    if subprocess.run([*under, "test", "-w", "/dev/kvm"], check=False).returncode == 0:
        pytest.skip("everybody may write to /dev/kvm here")
    line = refused(under=under)
    assert line.startswith("tvmm: no permission to open /dev/kvm; ")
    assert "kvm" in line.split("; ")[1]


def _without_kvm(*, script: str) -> tuple[str, ...]:
    """A command that runs another where /dev/kvm is not what it is."""
    under = ("unshare", "--mount", "--map-root-user") if os.geteuid() else ("unshare", "--mount")
    whole = (*under, "sh", "-c", f'{script} && exec "$@"', "sh")
    done = subprocess.run([*whole, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting over /dev needs rights that are lacking here: {done.stderr.strip()}")
    return whole


def test_no_kvm() -> None:
    """On a host without /dev/kvm the line says so, and what to do."""
    line = refused(under=_without_kvm(script="mount -t tmpfs none /dev"))
    assert line.startswith("tvmm: no /dev/kvm: this host offers no KVM; ")


def test_something_else_in_the_place_of_kvm() -> None:
    """A device that does not answer as KVM does is told as that."""
    assert "/dev/kvm does not answer as KVM does" in refused(
        under=_without_kvm(script="mount --bind /dev/null /dev/kvm")
    )


@pytest.mark.parametrize("verb", ["info", "tasks", "pause", "resume", "stop", "console"])
def test_verbs_without_a_machine(verb: str) -> None:
    """Each says that there is none, or none of that name."""
    status, out, err = call(verb)
    assert (status, out) == (2, "")
    assert err == "tvmm: no machine is running; start one with 'tvmm run'\n"
    assert call(verb, "web")[2].startswith("tvmm: no machine is named 'web'; ")


def test_without_standard_descriptors() -> None:
    """Closed descriptors 0, 1 and 2 are not taken for files that tvmm opens by itself."""
    script = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command("run", "--append", "run=emit,3000 then=poweroff")], check=False
    )
    assert done.returncode == 0

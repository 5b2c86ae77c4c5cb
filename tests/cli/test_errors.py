"""Whatever the user gets wrong is told in one line, with exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmm.cli import main

BAD: dict[str, str] = {
    # verbs and options
    "rnu": "unknown verb 'rnu'; did you mean 'run'?",
    "frobnicate": "unknown verb 'frobnicate'; see 'tvmm --help'",
    "--verison": "did you mean '--version'?",
    "--memory 1G": "options go behind the verb, as in 'tvmm run --memory'",
    "run --memroy 1G": "unknown option '--memroy'; did you mean '--memory'?",
    "run --memroy=1G": "unknown option '--memroy'; did you mean '--memory'?",
    "run --mem 1G": "unknown option '--mem'; did you mean '--memory'?",
    "run -append x": "unknown option '-append'; did you mean '--append'?",
    "run --zzz": "unknown option '--zzz'; see 'tvmm run --help'",
    "run vmlinuz": "unexpected argument 'vmlinuz'",
    "run --memory": "option --memory needs a value",
    "run --kernel --initrd": "option --kernel needs a value",
    "run --paused=yes": "--paused: ignored explicit argument 'yes'",
    "ps --jsno": "did you mean '--json'?",
    "info --memory --cpus": "not allowed with argument",
    "completion": "the following arguments are required: SHELL",
    "completion tcsh": "invalid choice: 'tcsh'",
    # memory
    "run --memory 0": "memory size 0 is too small; a machine needs at least 2M",
    "run --memory 1M": "memory size 1M is too small",
    "run --memory=-1G": "memory size '-1G' is negative",
    "run --memory lots": "memory size 'lots' is not a size; write a size as bytes (4096) or with",
    "run --memory 4097k": "not a multiple of the page size",
    "run --memory=": "memory is empty",
    "run --memory 1G,hugepags=on": "did you mean 'hugepages'?",
    "run --memory 1G,hugepages=8k": "there are no huge pages of 8k",
    "run --memory 1G,prealloc=maybe": "neither on nor off",
    # processors
    "run --cpus 0": "number of cpus 0 is out of range; it goes from 1 to 254",
    "run --cpus 10000": "number of cpus 10000 is out of range; it goes from 1 to 254",
    "run --cpus=-1": "number of cpus -1 is out of range",
    "run --cpus two": "number of cpus 'two' is not a whole number",
    "run --cpu hots": "unknown cpu model 'hots'; did you mean 'host'?",
    "run --cpu host,avx": "write +avx or -avx",
    # kernel
    "run --initrd initrd.img": "initrd 'initrd.img' is given without a kernel",
    "run --entry phv": "unknown entry 'phv'; did you mean 'pvh'?",
    "run --decompress never": "unknown decompress 'never'",
    # serial
    "run --serial stdoi": "unknown serial kind 'stdoi'; did you mean 'stdio'?",
    "run --serial=": "serial is empty; write stdio, pty, none, file=PATH, unix=PATH or tcp=HOST:PORT",
    "run --serial file=": "write file=PATH",
    "run --serial tcp=localhost": "serial tcp 'localhost' has no port",
    "run --serial tcp=localhost:123456": "it goes from 0 to 65535",
    "run --serial stdio,append=on": "unknown serial stdio option 'append'",
    # devices
    "run --device isa-debug-exti": "did you mean 'isa-debug-exit'?",
    "run --device isa-debug-exit,iobas=1": "did you mean 'iobase'?",
    "run --device isa-debug-exit,iobase=0x10000": "it goes from 0 to 65535",
    "run --device nothing,help": "unknown device 'nothing'",
    "run --device virtio-bkl,file=x": "did you mean 'virtio-blk'?",
    "run --device virtio-blk-pci": "device virtio-blk-pci needs file; write file=...: image, block device or",
    "run --device virtserialport": "put --device virtio-console before it",
    "run --disk=": "disk is empty; write FILE",
    "run --disk a.img,cahce=none": "did you mean 'cache'?",
    "run --disk a.img,queues=65": "disk property queues 65 is out of range; it goes from 0 to 64",
    "run --disk a.img --disk a.img": "two disks, one of them writable, want the file 'a.img'; add readonly=on",
    "run --vnc 0.0.0.0": "vnc address '0.0.0.0' has no port; write HOST:PORT",
    "run --vnc :0,tsl=on": "unknown vnc option 'tsl'; did you mean 'tls'?",
    "run --net tpa": "did you mean 'tap'?",
    "run --net tap,mac=01:00:00:00:00:00": "is a multicast address; the first byte has to be even",
    "run --net none --net tap": "net none stands beside another net",
    "run --serial stdio --device virtio-console,chardev=stdio": "want stdio; give one of them pty or none",
    # machine
    "run --name a/b": "'a/b' cannot name a machine",
    "run --powerdown-timeout soon": "powerdown timeout 'soon' is not a duration",
    "run --assist perhaps": "unknown assist 'perhaps'",
    "run --config /nonexistent.toml": "config file '/nonexistent.toml' cannot be read: No such file",
    # running machines
    "info nobody": "no machine is named 'nobody'",
    "tasks nobody": "no machine is named 'nobody'",
    "pause nobody": "no machine is named 'nobody'",
    "resume nobody": "no machine is named 'nobody'",
    "stop nobody": "no machine is named 'nobody'",
    "console nobody": "no machine is named 'nobody'",
    "stop": "no machine is running; start one with 'tvmm run'",
    "sendkey nobody ctrl-c": "no machine is named 'nobody'",
    "sendkey ctrl-alt-delte": "no key is called 'delte'; did you mean 'delete'?",
    "sendkey --hold 0 a": "hold 0 is out of range",
    "limit nobody disk0 bps=1M": "no machine is named 'nobody'",
    "limit": "no machine is running",
    "limit web disk0 none bps=1 bps=2": "limit 'bps' is given twice",
    "limit web disk0 bps=1 none": "'none' stands behind other limits",
    "limit web disk0 bps=1 iops": "'iops' is no limit; write LIMIT=VALUE",
    "limit a b c": "unexpected argument 'c'",
    "run --disk a.img,bps=1,bps_rd=1": "disk bps and bps_rd do not go together",
    "run --net tap,pps=fast": "net property pps 'fast' is not a whole number",
    "resize nobody disk0 1G": "no machine is named 'nobody'",
    "resize web disk0 lots": "size 'lots' is not a size",
    "resize disk0": "the following arguments are required: SIZE",
    "stop nobody --timeout later": "timeout 'later' is not a duration",
}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error; nothing is on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("tvmm: ")
    return err


@pytest.mark.parametrize(("line", "complaint"), BAD.items())
def test_bad_input(line: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error names the fact and what to do, and the exit status is 2."""
    assert main(line.split(" ")) == 2
    assert complaint in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("memory = ", "not TOML"),
        ("memroy = '1G'", "did you mean 'memory'?"),
        ("[memory]\nsiez = '1G'", "did you mean 'size'?"),
        ("cpus = 0", "it goes from 1 to 254"),
        ("initrd = 'x'", "given without a kernel"),
        ("disk = ['x', 'x']", "want the file 'x'"),
        ("[[net]]\ntype = 'tap'\nbr = 'b'\nip = '10.0.0.1/8'", "the bridge has it"),
        ("\xff", "not TOML"),
    ],
)
def test_bad_files(text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistakes in a configuration file are told like those on the command line."""
    path = tmp_path / "vm.toml"
    path.write_text(text)
    assert main(["run", "--config", str(path)]) == 2
    assert complaint in one_line(capsys)


def test_newlines_and_escapes_in_values_stay_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """An argument cannot break the line, or send the terminal anything but text."""
    assert main(["run", "--kernel", "a", "--serial", "file=\x1b[31m\nx,append=\x07"]) == 2
    assert "\x1b" not in one_line(capsys)


def test_a_missing_kernel_is_the_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is told by name."""
    assert main(["run", "--kernel", "/nonexistent/vmlinuz", "--serial", "none"]) == 2
    assert "/nonexistent/vmlinuz" in one_line(capsys)

"""Names and options of clones, and what they cannot share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm import MachineConfig
from tvmm.clones.plan import MAX_CLONES, check_together, clone_names, filled, filled_options
from tvmm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a{n}b", "a7b"),
        ("{n:03}-{n}", "007-7"),
        ("{n:3}", "007"),
        ("{m} {} {n:x} {{", "{m} {} {n:x} {{"),
        ("", ""),
    ],
)
def test_filled(text: str, expected: str) -> None:
    """The number where it belongs, and all other braces as they are."""
    assert filled(text, 7) == expected


@given(st.text(), st.integers(1, MAX_CLONES))
def test_any_text(text: str, number: int) -> None:
    """No text is refused, and what has been filled does not change any more."""
    once = filled(text, number)
    assert filled(once.replace("{", ""), number) == once.replace("{", "")


def test_filled_options() -> None:
    """Texts, also in lists; nothing else."""
    assert filled_options({"serial": "file=/x/{n}", "disk": ["{n:02}.img", "b"], "paused": True}, 3) == {
        "serial": "file=/x/3",
        "disk": ["03.img", "b"],
        "paused": True,
    }


def test_names() -> None:
    """A number behind the name, unless it says where it is to be."""
    assert clone_names("web", 3) == ["web-1", "web-2", "web-3"]
    assert clone_names("w{n:03}x", 2) == ["w001x", "w002x"]


@pytest.mark.parametrize(("name", "count"), [("web", 0), ("web", MAX_CLONES + 1), ("w" * 63, 10), ("w/{n}", 1)])
def test_names_that_cannot_be(name: str, count: int) -> None:
    """Refused before anything is started."""
    with pytest.raises(ConfigError):
        clone_names(name, count)


def configs(**options: object) -> list[MachineConfig]:
    """Three clones."""
    return [MachineConfig.from_options(filled_options(options, number)) for number in (1, 2, 3)]


SHARED = [
    ({"serial": "stdio"}, "serial port on the terminal"),
    ({"serial": "file=/x/out"}, "serial port file=/x/out"),
    ({"serial": "unix=/x/out"}, "serial port unix=/x/out"),
    ({"serial": "tcp=127.0.0.1:4000"}, "tcp=127.0.0.1:4000"),
    ({"serial": "pty,link=/x/tty"}, "pty,link=/x/tty"),
    ({"control": "/x/qmp"}, "control socket /x/qmp"),
    ({"vnc": ":1"}, "VNC server at 127.0.0.1:5901"),
    ({"vnc": "unix:/x/vnc"}, "VNC server at unix:/x/vnc"),
    ({"metrics": "127.0.0.1:9100"}, "metrics endpoint at 127.0.0.1:9100"),
    ({"vsock": "/x/vsock"}, "vsock /x/vsock"),
    ({"disk": ["/x/a.img"]}, "disk0 /x/a.img, which the guest writes to"),
    ({"disk": ["/x/{n}.img", "/x/b.img"]}, "disk1 /x/b.img"),
    ({"net": ["tap,ifname=tap0"]}, "net0 with interface tap0"),
    ({"net": ["tap,ip=10.0.0.1/24"]}, "net0 with ip=10.0.0.1/24"),
    ({"net": ["user,hostfwd=tcp:127.0.0.1:2222-:22"]}, "net0 with hostfwd=tcp:127.0.0.1:2222-:22"),
    ({"net": ["stream,path=/x/peer"]}, "net0 with path=/x/peer"),
    ({"device": ["virtio-console,chardev=unix=/x/hvc"]}, "console0 unix=/x/hvc"),
]


@pytest.mark.parametrize(("options", "words"), SHARED)
def test_what_they_cannot_share(options: dict[str, object], words: str) -> None:
    """Told before anything is started, with what helps; one machine alone may have it."""
    with pytest.raises(ConfigError, match="would be that of several clones; ") as caught:
        check_together(configs(**options))
    assert words in str(caught.value)
    assert not check_together(configs(**options)[:1])


ALONE = [
    {"serial": "none"},
    {"serial": "pty"},
    {"serial": "tcp=127.0.0.1:0"},
    {"serial": "file=/x/{n}"},
    {"control": "/x/{n}"},
    {"vnc": ":{n}"},
    {"vnc": "127.0.0.1:0"},
    {"metrics": "127.0.0.1:91{n:02}"},
    {"vsock": "/x/{n}"},
    {"disk": ["/x/a.img,readonly=on", "/x/{n}.qcow2"]},
    {"net": ["tap,ifname=tap{n}", "user,hostfwd=tcp::{n}022-:22", "tap"]},
    {"device": ["virtio-console,chardev=none", "virtio-rng"]},
]


@pytest.mark.parametrize("options", ALONE)
def test_what_is_each_ones_own(options: dict[str, object]) -> None:
    """By a number, by being any free one, or because it is only read."""
    assert check_together(configs(**options)) == []


@pytest.mark.parametrize(("net", "words"), [("tap,br=br0", "bridge br0"), ("tap,network=lab", "network lab")])
def test_one_address_on_one_segment(net: str, words: str) -> None:
    """It works as far as tvmm is concerned; that the guests will not find each other is said."""
    [warning] = check_together(configs(net=[net]))
    assert words in warning
    assert "one MAC address" in warning
    assert not check_together(configs(net=[net.replace("br0", "br{n}").replace("lab", "lab{n}")]))


def test_memory_that_is_not_shared() -> None:
    """A file cannot be mapped in its place."""
    [warning] = check_together(configs(memory="64M,shared=on"))
    assert "shared=on" in warning

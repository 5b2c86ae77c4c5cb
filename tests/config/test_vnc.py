"""Viewers: what ``--vnc`` takes, what it refuses, and what holds if little is said."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.file import options_from_toml
from tvmm.config.machine import MachineConfig
from tvmm.config.properties import help_lines
from tvmm.config.vnc import VNC_PROPERTIES, VncAddress, VncConfig
from tvmm.errors import ConfigError

HERE = VncAddress("tcp", "127.0.0.1", 5900)
EVERYONE = VncAddress("tcp", "0.0.0.0", 5900)

GOOD = {
    "none": VncConfig(),
    "127.0.0.1:5900": VncConfig(HERE),
    ":0": VncConfig(HERE),
    ":7": VncConfig(HERE._replace(port=5907)),
    "[::1]:5901": VncConfig(VncAddress("tcp", "::1", 5901)),
    "screen.example:0": VncConfig(VncAddress("tcp", "screen.example", 0)),
    "unix:/run/vnc": VncConfig(VncAddress("unix", path="/run/vnc")),
    "unix:a=b,,c,password=on": VncConfig(VncAddress("unix", path="a=b,c"), password=True),
    "address=127.0.0.1:5900": VncConfig(HERE),
    ":0,to=9": VncConfig(HERE, to=5909),
    ":0,to=0": VncConfig(HERE, to=5900),
    "127.0.0.1:6000,to=6010": VncConfig(HERE._replace(port=6000), to=6010),
    "0.0.0.0:5900,password=on,tls=on": VncConfig(EVERYONE, password=True, tls=True),
    "0.0.0.0:5900,password-file=p,view-only-password-file=v": VncConfig(
        EVERYONE, password_file="p", view_only_password_file="v"
    ),
    "0.0.0.0:5900,users-file=u,keys=k": VncConfig(EVERYONE, users_file="u", keys="k"),
    "0.0.0.0:5900,users-file=u,tls=off,insecure=on": VncConfig(EVERYONE, users_file="u", tls=False, insecure=True),
    ":0,share=ignore,lossy=off,max-viewers=1": VncConfig(HERE, share="ignore", lossy=False, max_viewers=1),
    ":0,web=127.0.0.1:8080": VncConfig(HERE, web=VncAddress("tcp", "127.0.0.1", 8080)),
    ":0,web=0.0.0.0:0": VncConfig(HERE, web=VncAddress("tcp", "0.0.0.0", 0)),
    ":0,size=1280x800": VncConfig(HERE, size=(1280, 800)),
}

BAD = {
    "": "vnc is empty; write HOST:PORT, unix:PATH, :DISPLAY or none",
    "127.0.0.1": "has no port",
    "[::1]": "has no port",
    "::1:5900": "put an IPv6 address into brackets",
    "[host]:5900": "brackets around no IPv6 address",
    "127.0.0.1:65536": "out of range",
    "127.0.0.1:x": "not a whole number",
    "127.0.0.1:1": "write port 5901, or :1 for that display of this host alone",
    "a b:5900": "is no host",
    "a/b:5900": "is no host",
    ":x": "display 'x' is not a whole number",
    ":59636": "out of range",
    ":-1": "out of range",
    "unix:": "has no path",
    "unix:" + "x" * 108: "too long for a socket",
    "none,password=on": "vnc none takes no options",
    ":0,pasword=on": "did you mean 'password'",
    ":0,password=maybe": "neither on nor off",
    ":0,password-secret=sec0": "write password-file=PATH",
    ":0,tls-creds=tls0": "write tls=on",
    ":0,websocket=5700": "write web=HOST:PORT",
    ":0,reverse=on": "viewers connect to tvmm",
    ":0,sasl=on": "users-file",
    ":0,share=all": "there are: allow-exclusive, force-shared, ignore",
    ":0,max-viewers=0": "from 1 to 256",
    ":0,max-viewers=257": "from 1 to 256",
    ":0,to=5899": "it goes from 5900 to 6899",
    ":0,to=6900": "it goes from 5900 to 6899",
    "127.0.0.1:0,to=5": "has no meaning without a port",
    "unix:a,to=5": "has no meaning without a port",
    ":0,web=:8080": "write web=HOST:PORT",
    ":0,web=unix:a": "no socket that a browser can reach",
    ":0,web=127.0.0.1:5900": "both want 127.0.0.1:5900",
    ":0,size=1280": "write WIDTHxHEIGHT",
    ":0,size=100x100": "it goes from 320 to 2560",
    ":0,size=1280x1601": "it goes from 200 to 1600",
    ":0,size=x": "not a whole number",
    ":0,keys=k,tls=off": "tls is off",
    ":0,users-file=u,tls=off": "in the clear",
    ":0,tls=on,tls=off": "given twice",
    "a\0b:1": "NUL",
}


@pytest.mark.parametrize(("text", "config"), GOOD.items())
def test_good(text: str, config: VncConfig) -> None:
    """Each spelling gives its record, and the record's spelling gives it again."""
    assert VncConfig.parse(text) == config
    assert VncConfig.parse(config.spelling()) == config


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_bad(text: str, complaint: str) -> None:
    """Each mistake is told in one line that says what is possible."""
    with pytest.raises(ConfigError) as caught:
        VncConfig.parse(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (VncConfig(VncAddress("tcp", "", 5900)), "has no host"),
        (VncConfig(VncAddress("tcp", "a", 70000)), "out of range"),
        (VncConfig(VncAddress("udp")), "no known kind"),
        (VncConfig(VncAddress("unix", path="a\0")), "NUL"),
        (VncConfig(HERE, password=1), "no boolean"),  # type: ignore[arg-type]
        (VncConfig(HERE, max_viewers=True), "no integer"),
        (VncConfig(HERE, keys="\0"), "NUL"),
        (VncConfig(HERE, to=70000), "out of range"),
        (VncConfig(HERE, size=(5000, 800)), "out of range"),
    ],
)
def test_records_made_by_hand_are_checked(config: VncConfig, complaint: str) -> None:
    """check() holds a record from a program to the same ranges."""
    with pytest.raises(ConfigError, match=complaint):
        config.check()


@pytest.mark.parametrize(
    ("text", "asks", "generates", "encryption", "warning"),
    [
        (":0", False, False, "off", ""),
        ("localhost:5900", False, False, "off", ""),
        ("127.8.8.8:5900", False, False, "off", ""),
        ("unix:a", False, False, "off", ""),
        ("unix:a,password=on", True, True, "off", ""),
        (":0,tls=on", False, False, "required", ""),
        (":0,users-file=u", False, False, "offered", ""),
        (":0,keys=k", False, False, "offered", ""),
        ("0.0.0.0:5900", True, True, "offered", "is weak"),
        ("host.example:5900", True, True, "offered", "is weak"),
        ("[::]:5900,password-file=p", True, False, "offered", "is weak"),
        ("0.0.0.0:5900,view-only-password-file=p", True, True, "offered", "is weak"),
        ("0.0.0.0:5900,tls=on", True, True, "required", ""),
        ("0.0.0.0:5900,tls=off", True, True, "off", "is weak"),
        ("0.0.0.0:5900,users-file=u", False, False, "offered", "without encryption"),
        ("0.0.0.0:5900,users-file=u,tls=on", False, False, "required", ""),
        ("0.0.0.0:5900,users-file=u,password=on", True, True, "offered", "is weak"),
        ("0.0.0.0:5900,insecure=on", False, False, "offered", "sees and controls the guest"),
        ("0.0.0.0:5900,insecure=on,password=on", True, True, "offered", "is weak"),
        ("0.0.0.0:5900,users-file=u,tls=off,insecure=on", False, False, "off", "in the clear"),
    ],
)
def test_defaults_are_safe(text: str, asks: bool, generates: bool, encryption: str, warning: str) -> None:
    """Off loopback nobody comes in without a word, unless that was asked for by name, and then it is said."""
    config = VncConfig.parse(text)
    assert (config.asks_password, config.generates_password, config.encryption) == (asks, generates, encryption)
    assert (warning in "".join(config.warnings)) is True
    assert bool(config.warnings) is bool(warning)
    assert config.clear_users is ("in the clear" in warning)


def test_machines_have_one() -> None:
    """The option, the file's line and the file's table give the same."""
    config = MachineConfig.parse(vnc="0.0.0.0:5900,tls=on")
    assert config.vnc == VncConfig(EVERYONE, tls=True)
    assert MachineConfig.parse().vnc is MachineConfig.parse(vnc="none").vnc is None
    line = options_from_toml('vnc = "0.0.0.0:5900,tls=on"', "f")
    table = options_from_toml('[vnc]\naddress = "0.0.0.0:5900"\ntls = true\n', "f")
    assert MachineConfig.from_options(line).vnc == MachineConfig.from_options(table).vnc == config.vnc
    for text, complaint in (
        ("[vnc]\ntls = true", r"^f: \[vnc\] has no address"),
        ('[vnc]\naddress = ":0"\ntsl = true', "^f: unknown vnc option 'tsl'"),
        ("vnc = '1.2.3.4'", "^f: vnc address '1.2.3.4' has no port"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            options_from_toml(text, "f")


@pytest.mark.parametrize("options", [{"control": "/a"}, {"serial": "unix=/a"}, {"incoming": "unix:/a"}])
def test_sockets_that_two_want(options: dict[str, str]) -> None:
    """Each is told."""
    with pytest.raises(ConfigError, match="both want the socket '/a'"):
        MachineConfig.parse(vnc="unix:/a", **options)


def test_each_field_is_a_property() -> None:
    """The table has the fields of the record, in their order, with their defaults, and can be shown."""
    assert tuple(prop.attribute for prop in VNC_PROPERTIES) == VncConfig._fields
    assert len(help_lines(VNC_PROPERTIES)) == len(VNC_PROPERTIES)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([":0", "0.0.0.0:5900", "unix:x", "none", "[::1]:6000", ""]),
    st.lists(st.sampled_from([prop.name for prop in VNC_PROPERTIES]), unique=True, max_size=4),
    st.data(),
)
def test_any_value_is_a_server_or_a_config_error(first: str, names: list[str], data: st.DataObject) -> None:
    """No values get another exception out of the parser; those that it takes can be spelled."""
    words = st.sampled_from(["on", "off", "0", "1", "5901", "a,,b", "", "\0", "é", ":1", "-1", "640x480", "a:1"])
    text = ",".join([first, *(f"{name}={data.draw(words)}" for name in names)])
    complaint = ""
    try:
        config = VncConfig.parse(text)
    except ConfigError as error:
        complaint = str(error)
    else:
        assert VncConfig.parse(config.spelling()) == config
        assert config.address.is_local or config.asks_password or config.users_file or config.insecure
    assert "\n" not in complaint


def test_a_console_for_other_hosts_is_encrypted() -> None:
    """Its address has the token in it; viewers may be of this host all the same."""
    assert VncConfig.parse(":0,web=0.0.0.0:8900").encryption == "offered"
    assert VncConfig.parse(":0,web=127.0.0.1:8900").encryption == "off"
    with pytest.raises(ConfigError, match=r"token to 0\.0\.0\.0:8900 in the clear"):
        VncConfig.parse(":0,web=0.0.0.0:8900,tls=off")
    assert VncConfig.parse(":0,web=0.0.0.0:8900,tls=off,insecure=on").encryption == "off"

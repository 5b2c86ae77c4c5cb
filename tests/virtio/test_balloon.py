"""The balloon's model: features and queues, sizes, statistics, requests for hints, records."""

from __future__ import annotations

from itertools import pairwise
from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.devices import make_balloon
from tvmm.errors import ConfigError
from tvmm.state import decode, encode
from tvmm.virtio.balloon import (
    MAX_PAGES,
    STATS,
    Balloon,
    BalloonSettings,
    BalloonState,
    Role,
    merge_runs,
    page_numbers,
)
from tvmm.virtio.device import Activation, ConfigState
from tvmm.virtio.features import Balloon as Feature
from tvmm.virtio.features import Ring

PLAIN = BalloonSettings(2048)
STOP, DONE, FIRST = 0, 1, 0x8000_0001


def field(model: Balloon, offset: int) -> int:
    """What a driver reads."""
    return model.read_config(offset, 4)


@pytest.mark.parametrize(
    ("options", "features", "queues", "length"),
    [
        ({}, 0x03, 3, 8),
        ({"deflate_on_oom": True}, 0x07, 3, 8),
        ({"hinting": True}, 0x1B, 4, 16),
        ({"reporting": True}, 0x33, 4, 16),
        ({"deflate_on_oom": True, "hinting": True, "reporting": True}, 0x3F, 5, 16),
    ],
)
def test_what_is_offered(options: dict[str, bool], features: int, queues: int, length: int) -> None:
    """Features, queues and as much of the configuration space as the features need."""
    model = Balloon(PLAIN._replace(**options))
    assert model.features & 0xFF == features
    assert (len(model.queue_sizes), model.config_length) == (queues, length)


@pytest.mark.parametrize(
    ("accepted", "roles"),
    [
        (0, ["inflate", "deflate", "", "", ""]),
        (Feature.STATS_VQ, ["inflate", "deflate", "stats", "", ""]),
        (Feature.FREE_PAGE_HINT, ["inflate", "deflate", "hint", "", ""]),
        (Feature.PAGE_REPORTING, ["inflate", "deflate", "report", "", ""]),
        (Feature.STATS_VQ | Feature.PAGE_REPORTING, ["inflate", "deflate", "stats", "report", ""]),
        (Feature.FREE_PAGE_HINT | Feature.PAGE_REPORTING, ["inflate", "deflate", "hint", "report", ""]),
        (0x3F, ["inflate", "deflate", "stats", "hint", "report"]),
    ],
)
def test_queues_move_up(accepted: int, roles: list[str]) -> None:
    """A queue has the first number that is free, with the features that were agreed on."""
    model = make_balloon()
    model.negotiated(Ring.VERSION_1 | accepted)
    assert [model.role(index) for index in range(5)] == roles
    for role in ("stats", "hint", "report"):
        assert model.queue_of(role) == (roles.index(role) if role in roles else None)


def test_the_host_asks_and_the_driver_answers() -> None:
    """num_pages is the host's, actual the driver's; both are in pages; the host is told of the second."""
    model = make_balloon()
    told: list[int] = []
    model.on_actual = lambda: told.append(model.actual)
    model.set_target(300)
    assert (field(model, 0), model.target, model.unseen_change) == (300, 300, False)
    model.set_target(5000)
    assert (model.target, model.unseen_change) == (2048, True)
    model.set_target(-1)
    assert model.target == 0
    assert not model.write_config(0, 4, 7)
    assert model.write_config(4, 4, 299)
    assert (model.actual, field(model, 4)) == (299, 299)
    assert model.write_config(4, 4, MAX_PAGES)
    assert (model.actual, told) == (2048, [299, 2048])
    assert model.write_config(12, 4, 0xAAAA_AAAA)
    assert told == [299, 2048]


def test_poison_counts_if_the_driver_says_so() -> None:
    """Without the feature the field means nothing, and a reset forgets it."""
    model = make_balloon()
    model.write_config(12, 4, 0xAA)
    assert model.poison == 0
    model.negotiated(Ring.VERSION_1 | Feature.PAGE_POISON)
    assert model.poison == 0xAA
    model.reset()
    model.negotiated(Ring.VERSION_1 | Feature.PAGE_POISON)
    assert model.poison == 0


def test_statistics_by_known_tags() -> None:
    """In any order; the last of a tag counts; others and half an entry are ignored."""
    model = make_balloon()
    entries = [(4, 1000), (0xFFFF, 1), (0, 7), (len(STATS), 2), (4, 2000)]
    model.take_stats(b"".join(pack("<HQ", *entry) for entry in entries) + b"\5\0\1", 1234)
    assert (model.stats, model.updated) == ({4: 2000, 0: 7}, 1234)
    model.take_stats(b"", 1235)
    assert (model.stats, model.updated) == ({}, 1235)


def test_a_round_of_hints() -> None:
    """Pages count between the driver's word that it answers this very request, and the next word of either side."""
    model = make_balloon()
    assert not model.ask_for_hints()
    model.negotiated(Ring.VERSION_1 | Feature.FREE_PAGE_HINT)
    model.end_hints()
    assert field(model, 8) == STOP
    assert model.ask_for_hints()
    assert (field(model, 8), model.hinting) == (FIRST, False)
    for number, counts in ((FIRST - 1, False), (FIRST, True), (STOP, False), (FIRST, True)):
        model.hint_command(number)
        assert model.hinting == counts
    model.stop_hints()
    assert (field(model, 8), model.hinting) == (STOP, False)
    model.hint_command(STOP)
    assert not model.hinting
    model.end_hints()
    assert (field(model, 8), model.hinting) == (DONE, False)
    model.hint_command(DONE)
    assert not model.hinting
    model.stop_hints()
    assert field(model, 8) == DONE
    assert model.ask_for_hints()
    assert field(model, 8) == FIRST + 1
    model.reset()
    assert (field(model, 8), model.hinting) == (STOP, False)


def test_numbers_of_requests_go_round() -> None:
    """After the last one comes the first again, and never one of the reserved."""
    model = make_balloon()
    last = model.state()._replace(command=0xFFFF_FFFF)
    model.restore(last, Ring.VERSION_1 | Feature.FREE_PAGE_HINT)
    model.ask_for_hints()
    assert field(model, 8) == 0x8000_0000


def test_a_device_without_hints_has_no_field_for_them() -> None:
    """All of it is without effect."""
    model = Balloon(PLAIN)
    model.negotiated(Ring.VERSION_1)
    model.stop_hints()
    model.end_hints()
    model.hint_command(STOP)
    assert not model.hinting
    assert model.config_bytes() == bytes(8)


def test_after_a_reset_all_is_the_guests() -> None:
    """The host's wish stays."""
    model = make_balloon()
    model.set_target(100)
    model.write_config(4, 4, 50)
    model.take_stats(pack("<HQ", 4, 1), 5)
    model.reset()
    assert (model.target, model.actual, model.stats, model.updated) == (100, 0, {}, 0)


def test_page_numbers_and_runs() -> None:
    """Whole numbers of 32 bits; neighbours become one run, whatever their order, each once."""
    assert page_numbers(pack("<3I", 5, 0, MAX_PAGES) + b"\1\2\3") == [5, 0, MAX_PAGES]
    assert merge_runs([5, 3, 4, 4, 9, 0, MAX_PAGES]) == [(0, 1), (3, 3), (9, 1), (MAX_PAGES, 1)]
    assert merge_runs([]) == []


@given(st.lists(st.integers(0, 40)))
def test_runs_have_exactly_the_numbers(numbers: list[int]) -> None:
    """None is lost or made up, and no two runs touch."""
    runs = merge_runs(numbers)
    assert [number for first, count in runs for number in range(first, first + count)] == sorted(set(numbers))
    assert all(second[0] > sum(first) for first, second in pairwise(runs))


@pytest.mark.parametrize("pages", [0, -1, MAX_PAGES + 1])
def test_impossible_memory(pages: int) -> None:
    """Less than a page, or more than there are numbers for."""
    with pytest.raises(ConfigError, match="pages of memory"):
        Balloon(BalloonSettings(pages))


def used() -> Balloon:
    """One with everything in it."""
    model = make_balloon()
    model.negotiated(Ring.VERSION_1 | 0x3F)
    model.activate(Activation(Ring.VERSION_1 | 0x3F, ()))
    model.set_target(300)
    model.write_config(4, 4, 200)
    model.write_config(12, 4, 0x5A)
    model.take_stats(pack("<HQHQ", 5, 9000, 4, 5000), 1_700_000_000)
    model.ask_for_hints()
    model.hint_command(FIRST)
    return model


def test_a_record_has_all_of_it() -> None:
    """Through bytes into another one, which then is as the first."""
    model, other = used(), make_balloon()
    state = decode(encode(model.state()), (BalloonState, ConfigState))
    other.restore(state, model.accepted)
    assert other.state() == model.state()
    assert (other.target, other.actual, other.poison, other.hinting) == (300, 200, 0x5A, True)
    other.ask_for_hints()
    assert field(other, 8) == FIRST + 1


BAD: list[tuple[str, dict[str, Any]]] = [
    ("more pages than there are", {"config": ConfigState(pack("<4I", 2049, 0, 0, 0))}),
    ("space", {"config": ConfigState(bytes(8))}),
    ("stats is not", {"stats": [(1, 2)]}),
    ("stats is not", {"stats": ((0, 0),) * 17}),
    ("two numbers", {"stats": ((1, 2, 3),)}),
    ("two numbers", {"stats": (1,)}),
    ("tag", {"stats": ((len(STATS), 0),)}),
    ("value", {"stats": ((1, 1 << 64),)}),
    ("value", {"stats": ((1, -1),)}),
    ("rise", {"stats": ((2, 0), (1, 0))}),
    ("rise", {"stats": ((1, 0), (1, 0))}),
    ("updated", {"updated": -1}),
    ("command", {"command": 0x7FFF_FFFF}),
    ("command", {"command": 1 << 32}),
    ("announced", {"announced": 1 << 32}),
    ("announced", {"announced": None}),
]


@pytest.mark.parametrize(("words", "fields"), BAD)
def test_bad_records(words: str, fields: dict[str, Any]) -> None:
    """Each is refused by the name of its field, and changes nothing."""
    model = used()
    before = model.state()
    with pytest.raises(ValueError, match=words):
        model.restore(before._replace(**fields), 0)
    assert (model.state(), model.accepted) == (before, Ring.VERSION_1 | 0x3F)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("write", "target", "stats", "ask", "stop", "end", "hint")), st.integers())))
def test_anything_can_be_saved(steps: list[tuple[str, int]]) -> None:
    """Whatever both sides do, the record is one that `restore` takes."""
    model = make_balloon()
    model.negotiated(Ring.VERSION_1 | 0x3F)
    for name, value in steps:
        match name:
            case "write":
                model.write_config(value % 16, 1, value >> 4 & 0xFF)
            case "target":
                model.set_target(value)
            case "stats":
                model.take_stats((value & (1 << 400) - 1).to_bytes(50, "little"), abs(value) & 0xFFFF)
            case "ask":
                model.ask_for_hints()
            case "stop":
                model.stop_hints()
            case "end":
                model.end_hints()
            case "hint":
                model.hint_command(value & 0xFFFF_FFFF)
    other = make_balloon()
    other.restore(model.state(), model.accepted)
    assert other.state() == model.state()
    assert [other.role(index) for index in range(5)] == [Role.INFLATE, Role.DEFLATE, "stats", "hint", "report"]

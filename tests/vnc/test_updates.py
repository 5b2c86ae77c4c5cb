"""When an update goes and of what: leave, damage, a free line, pieces."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.rfb_pair import MS, Pair, encode_raw
from tests.support.rfb_viewer import RfbViewer
from tvmm.vnc import encodings
from tvmm.vnc.client_messages import EnableContinuousUpdates, FramebufferUpdateRequest
from tvmm.vnc.congestion import GONE_NS, WINDOW_BYTES
from tvmm.vnc.damage import RECTS_MAX
from tvmm.vnc.encodings import Wishes
from tvmm.vnc.errors import RfbMisuse
from tvmm.vnc.pixel_format import Rect
from tvmm.vnc.session import SessionOptions
from tvmm.vnc.updates import UNSENT_BYTES

EVERYTHING = Rect(0, 0, 200, 70)


def first(pair: Pair) -> Pair:
    """With its first picture, and asking for the next."""
    pair.viewer.request(incremental=False)
    pair.update()
    pair.viewer.request()
    pair.settle()
    return pair


def test_nothing_without_a_request() -> None:
    """One update for each, of what has changed by then."""
    pair = Pair().running()
    assert pair.update() is None
    first(pair)
    assert pair.update() is None
    pair.draw(Rect(0, 0, 10, 10))
    pair.draw(Rect(150, 60, 10, 10))
    plan = pair.update()
    assert plan is not None
    assert plan.rects == (Rect(0, 0, 64, 16), Rect(128, 48, 64, 22))
    pair.draw(Rect(0, 0, 10, 10))
    assert pair.update() is None


def test_damage_outside_of_the_request_waits() -> None:
    """The region is rounded up to tiles, so that nothing is sent for ever."""
    pair = first(Pair().running())
    pair.draw(Rect(0, 0, 10, 10))
    pair.update()
    pair.draw(EVERYTHING)
    pair.viewer.request(rect=Rect(70, 20, 10, 10))
    plan = pair.update()
    assert plan is not None
    assert plan.rects == (Rect(64, 16, 64, 16),)
    pair.viewer.request(rect=Rect(70, 20, 10, 10))
    assert pair.update() is None
    pair.viewer.request()
    plan = pair.update()
    assert plan is not None
    assert sum(rect.area for rect in plan.rects) == EVERYTHING.area - 64 * 16


@pytest.mark.parametrize(
    "rect", [Rect(0, 0, 0, 0), Rect(65535, 65535, 65535, 65535), Rect(199, 69, 65535, 65535), Rect(0, 0, 65535, 1)]
)
def test_any_region_may_be_asked_for(rect: Rect) -> None:
    """What of it is on the screen comes."""
    pair = first(Pair().running())
    pair.viewer.send(FramebufferUpdateRequest(False, rect).pack())
    plan = pair.update()
    inside = rect.clip(200, 70)
    assert (plan is not None) is bool(inside.area)
    if plan is not None:
        assert plan.rects[0].intersect(inside).area


def test_a_slow_viewer_gets_what_is_there_when_it_asks() -> None:
    """A thousand changes are one update, and nothing is kept but the tiles."""
    pair = first(Pair().running())
    pair.update()
    for step in range(1000):
        pair.draw(Rect(step % 190, step % 60, 5, 5), step & 0xFF)
    pair.viewer.request()
    before = len(pair.viewer.updates)
    assert pair.update() is not None
    assert len(pair.viewer.updates) == before + 1
    assert pair.viewer.pixels == pair.canvas.pixels
    assert len(pair.session.updates.damage.tiles) == pair.canvas.columns * pair.canvas.rows


def test_unsent_bytes_hold_the_next_one_back() -> None:
    """And the damage goes on being gathered."""
    pair = first(Pair().running())
    pair.draw(EVERYTHING)
    assert pair.update(unsent_bytes=UNSENT_BYTES + 1) is None
    assert pair.update(unsent_bytes=UNSENT_BYTES) is not None


def test_output_that_was_not_taken_counts_as_unsent() -> None:
    """A shell that is still sending need not say so twice."""
    pair = Pair(size=(400, 400)).running(encodings.CONTINUOUS_UPDATES)
    pair.viewer.send(EnableContinuousUpdates(True, Rect(0, 0, 400, 400)).pack())
    pair.settle()
    plan = pair.session.plan(pair.now_ns)
    assert plan is not None
    pair.session.finish(1, [bytes(UNSENT_BYTES + 1)], pair.now_ns)
    pair.session.damage(bytes((1,)) * len(pair.canvas.new_damage()))
    assert pair.session.plan(pair.now_ns) is None


def test_the_window_holds_updates_back_until_a_fence_is_answered() -> None:
    """With a time to wake up, in case the viewer never does."""
    viewer = RfbViewer(answers_fences=False)
    pair = Pair(viewer, size=(400, 400)).running(encodings.FENCE, encodings.CONTINUOUS_UPDATES)
    viewer.answer_fences()
    viewer.send(EnableContinuousUpdates(True, Rect(0, 0, 400, 400)).pack())
    assert pair.update() is not None
    pair.draw(Rect(0, 0, 400, 400))
    assert pair.update() is None
    assert pair.session.updates.congestion.in_flight > WINDOW_BYTES
    wake_ns = pair.session.wake_ns(pair.now_ns)
    assert wake_ns == pair.now_ns + GONE_NS + 1
    viewer.answer_fences()
    assert pair.update(1) is not None
    pair.draw(Rect(0, 0, 400, 400))
    assert pair.update() is None
    pair.now_ns = pair.session.wake_ns(pair.now_ns) or 0
    assert pair.update() is not None


def test_time_to_the_next_request_tells_a_slow_line() -> None:
    """Where there are no fences."""
    pair = Pair().running(encodings.TIGHT, encodings.JPEG_QUALITY_9)
    for taken_ms, level in ((10, 9), (300, 8), (20_000, 8)):
        pair.viewer.request(incremental=False)
        pair.update()
        pair.now_ns += taken_ms * MS
        pair.viewer.request()
        pair.settle()
        assert pair.session.updates.quality.level == level


def test_pieces() -> None:
    """With LastRect the first part goes out before the last is made; without, all goes at once."""
    for numbers in ((), (encodings.LAST_RECT,)):
        pair = Pair().running(*numbers)
        pair.draw(Rect(5, 5, 150, 60), 9, 8, 7)
        pair.viewer.request(incremental=False)
        pair.settle()
        plan = pair.session.plan(pair.now_ns)
        assert plan is not None
        halves = (Rect(0, 0, 200, 30), Rect(0, 30, 200, 40))
        chunks = encode_raw(pair.canvas, halves, plan.settings.pixel_format)
        pair.session.part(1, chunks[:1], pair.now_ns)
        pair.settle()
        assert bool(pair.viewer.colour(5, 5)[0]) is bool(numbers)
        pair.session.finish(1, chunks[1:], pair.now_ns)
        pair.settle()
        assert pair.viewer.pixels == pair.canvas.pixels
        assert [rect for rect, _ in pair.viewer.updates[-1].rects] == list(halves)
        assert pair.viewer.waiting == 0


def test_misuse() -> None:
    """Of a plan that is not there, or there already."""
    pair = first(Pair().running())
    updates = pair.session.updates
    with pytest.raises(RfbMisuse):
        updates.finish(0, [], 0)
    with pytest.raises(RfbMisuse):
        updates.part(0, [], 0)
    pair.draw(EVERYTHING)
    assert pair.session.plan(pair.now_ns) is not None
    with pytest.raises(RfbMisuse):
        updates.plan(pair.now_ns)
    with pytest.raises(RfbMisuse, match="rectangles"):
        updates.finish(65535, [], pair.now_ns)


def test_resize_during_an_update() -> None:
    """It is finished at the old size; then the new one is told."""
    pair = first(Pair().running(encodings.DESKTOP_SIZE))
    pair.draw(EVERYTHING)
    plan = pair.session.plan(pair.now_ns)
    assert plan is not None
    chunks = encode_raw(pair.canvas, plan.rects, plan.settings.pixel_format)
    pair.resize(50, 40)
    pair.session.finish(1, chunks, pair.now_ns)
    pair.viewer.request()
    pair.update()
    assert pair.viewer.width == 50
    pair.viewer.request()
    pair.update()
    assert pair.viewer.pixels == pair.canvas.pixels


def test_plans_are_bounded() -> None:
    """A chessboard of a screen is some rectangles."""
    pair = Pair(size=(2560, 1600)).running()
    pair.viewer.request(incremental=False)
    pair.settle()
    columns = pair.canvas.columns
    updates = pair.session.updates
    updates.damage.clear()
    updates.add_damage(bytes((number + number // columns) % 2 for number in range(columns * pair.canvas.rows)))
    plan = pair.session.plan(pair.now_ns)
    assert plan is not None
    assert len(plan.rects) <= RECTS_MAX


# What a list of encodings comes to.


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), Wishes()),
        ((-1, 99, 1), Wishes(copy_rect=True)),
        ((16, 7, 5), Wishes(encoding=16)),
        ((1, 5, 16, 0), Wishes(encoding=5, copy_rect=True)),
        ((7, -32, -23, -256), Wishes(encoding=7, quality=0, compress_level=0)),
        ((-412,), Wishes(quality=9, fine_quality=100)),
        ((-512, -28), Wishes(quality=4, fine_quality=0)),
        ((-768,), Wishes(subsampling=0)),
        ((-224, -308, -0x3F5E1A32), Wishes(extensions=frozenset({-224, -308, -0x3F5E1A32}))),
    ],
)
def test_wishes(numbers: tuple[int, ...], expected: Wishes) -> None:
    """The first encoding that can be made, the first of each parameter, and extensions."""
    assert Wishes.of(numbers) == expected


def test_encodings_that_cannot_be_made() -> None:
    """Are not chosen."""
    pair = Pair(options=SessionOptions(encodings=frozenset({0, 16}))).running(7, 1, 16)
    assert pair.session.updates.wishes == Wishes(encoding=16)


# All of it against any order of events.


class Draw(NamedTuple):
    """A square."""

    x: int
    y: int
    side: int

    def do(self, pair: Pair) -> None:
        rect = Rect(self.x, self.y, self.side, self.side).clip(pair.canvas.width, pair.canvas.height)
        pair.draw(rect, self.side, self.x, self.y)


class Request(NamedTuple):
    """Of all of it."""

    incremental: bool

    def do(self, pair: Pair) -> None:
        pair.viewer.request(incremental=self.incremental)


class Continuous(NamedTuple):
    """Whether or not the viewer has said that it can."""

    enable: bool

    def do(self, pair: Pair) -> None:
        pair.viewer.send(EnableContinuousUpdates(self.enable, Rect(0, 0, 300, 100)).pack())


class Encodings(NamedTuple):
    """Extensions."""

    numbers: frozenset[int]

    def do(self, pair: Pair) -> None:
        pair.viewer.set_encodings(*self.numbers)


class Size(NamedTuple):
    """Another one, or the same."""

    width: int
    height: int

    def do(self, pair: Pair) -> None:
        pair.settle()
        pair.resize(self.width, self.height)


class Go(NamedTuple):
    """An update, if there is one."""

    after_ms: int

    def do(self, pair: Pair) -> None:
        pair.update(self.after_ms)


class Leds(NamedTuple):
    """A fact."""

    leds: int

    def do(self, pair: Pair) -> None:
        pair.session.set_leds(self.leds)


class Answers(NamedTuple):
    """Whether the viewer answers fences."""

    answers: bool

    def do(self, pair: Pair) -> None:
        pair.viewer.answers_fences = self.answers


Action = Draw | Request | Continuous | Encodings | Size | Go | Leds | Answers
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(Draw, st.integers(0, 180), st.integers(0, 60), st.integers(1, 20)),
    st.builds(Request, st.booleans()),
    st.builds(Continuous, st.booleans()),
    st.builds(Encodings, st.frozensets(st.sampled_from(sorted(encodings._FLAGS)))),
    st.builds(Size, st.integers(1, 300), st.integers(1, 100)),
    st.builds(Go, st.integers(0, 2000)),
    st.builds(Leds, st.integers(0, 7)),
    st.builds(Answers, st.booleans()),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(ACTIONS, max_size=25))
def test_any_order_of_events_ends_in_the_right_picture(actions: list[Action]) -> None:
    """Whatever happens in between, a viewer that goes on asking has the guest's screen in the end."""
    pair = Pair().running()
    for action in actions:
        action.do(pair)
    pair.viewer.answers_fences = True
    pair.viewer.answer_fences()
    pair.viewer.set_encodings(encodings.DESKTOP_SIZE, encodings.LED_STATE)
    for _ in range(4):
        pair.viewer.request()
        pair.update(1000)
    assert (pair.viewer.width, pair.viewer.height) == (pair.canvas.width, pair.canvas.height)
    assert pair.viewer.pixels == pair.canvas.pixels
    assert pair.viewer.leds == pair.session.updates.facts.leds
    pair.viewer.request()
    assert pair.update(1000) is None

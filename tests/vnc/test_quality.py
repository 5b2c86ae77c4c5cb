"""JPEG quality by the time that updates take, and what was lost coming back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfb_pair import MS, Pair
from tvmm.vnc import encodings
from tvmm.vnc.client_messages import EnableContinuousUpdates
from tvmm.vnc.pixel_format import Rect
from tvmm.vnc.quality import FAST_UPDATES, REFINE_NS, REFINE_TILES, Quality, QualityPolicy
from tvmm.vnc.session import SessionOptions

QUALITY_8 = encodings.JPEG_QUALITY_0 + 8
EVERYTHING = Rect(0, 0, 200, 70)


def test_slow_updates_make_it_worse_and_fast_ones_better() -> None:
    """Down quickly, up slowly, not above what is wanted."""
    quality = Quality()
    quality.want(8)
    quality.observe(10 * MS)
    assert quality.level == 8
    quality.observe(200 * MS)
    assert quality.level == 7
    quality.observe(900 * MS)
    assert quality.level == 5
    for _ in range(FAST_UPDATES - 1):
        quality.observe(11 * MS)
    assert quality.level == 5
    quality.observe(11 * MS)
    assert quality.level == 6
    for _ in range(100):
        quality.observe(11 * MS)
    assert quality.level == 8
    for _ in range(100):
        quality.observe(5000 * MS)
    assert quality.level == QualityPolicy().lowest


def test_a_long_line_is_not_a_slow_one() -> None:
    """Only what is added to the shortest time counts."""
    quality = Quality()
    quality.want(8)
    for _ in range(20):
        quality.observe(600 * MS)
    assert quality.level == 8


@pytest.mark.parametrize(("adaptive", "wanted"), [(False, 6), (True, None), (True, 0)])
def test_what_is_never_made_worse(adaptive: bool, wanted: int | None) -> None:
    """A fixed quality, none at all, and the worst."""
    quality = Quality(QualityPolicy(adaptive=adaptive))
    quality.want(wanted)
    for taken_ms in (1, 1000, 1000, 1000):
        quality.observe(taken_ms * MS)
    assert quality.level == wanted


@given(st.lists(st.integers(1, 10**11)), st.integers(0, 9))
def test_level_stays_between_lowest_and_wanted(times: list[int], wanted: int) -> None:
    """Whatever is observed."""
    quality = Quality()
    quality.want(wanted)
    for taken_ns in times:
        quality.observe(taken_ns)
        assert quality.level is not None
        assert min(1, wanted) <= quality.level <= wanted


def lossy_pair(options: SessionOptions | None = None, size: tuple[int, int] = (200, 70)) -> Pair:
    """A viewer of Tight with JPEG and continuous updates, with its first picture."""
    pair = Pair(options=options, size=size).running(encodings.TIGHT, QUALITY_8, encodings.CONTINUOUS_UPDATES)
    pair.viewer.send(EnableContinuousUpdates(True, Rect(0, 0, *size)).pack())
    return pair


def test_a_still_screen_is_sent_again_without_loss() -> None:
    """After a moment, once; and there is a time to wake up for it."""
    pair = lossy_pair()
    first = pair.update()
    assert first is not None
    assert first.settings.quality == 8
    assert pair.session.wake_ns(pair.now_ns) is not None
    assert pair.update() is None
    refined = None
    while refined is None:
        wake_ns = pair.session.wake_ns(pair.now_ns)
        assert wake_ns is not None
        assert wake_ns <= pair.now_ns + REFINE_NS
        pair.now_ns = wake_ns
        refined = pair.update()
    assert refined.refines
    assert refined.settings.quality is None
    assert refined.rects == (EVERYTHING,)
    assert pair.now_ns < 3 * REFINE_NS + 1_000 * MS
    assert pair.session.wake_ns(pair.now_ns) is None
    assert pair.update(2000) is None


def test_only_what_was_lossy_and_only_where_it_is_still() -> None:
    """The encoder says what was lossy; a part that goes on changing waits."""
    pair = lossy_pair()
    pair.settle()
    plan = pair.session.plan(pair.now_ns)
    assert plan is not None
    pair.session.finish(0, [], pair.now_ns, lossy=[Rect(0, 0, 128, 32)])
    refined: list[Rect] = []
    for _ in range(40):
        pair.now_ns += REFINE_NS // 4
        pair.session.damage(bytes((1,)) + bytes(len(pair.canvas.new_damage()) - 1))
        for _ in range(2):
            plan = pair.session.plan(pair.now_ns)
            if plan is not None:
                pair.session.finish(0, [], pair.now_ns, lossy=() if plan.refines else plan.rects)
                refined += plan.rects if plan.refines else ()
    assert refined == [Rect(64, 0, 64, 16), Rect(0, 16, 128, 16)]


def test_refinement_goes_in_pieces() -> None:
    """A large screen is not one large update that everything else waits for."""
    pair = lossy_pair(size=(2560, 200))
    pair.settle()
    pair.session.finish(0, [], 0) if pair.session.plan(pair.now_ns) else None
    tiles = 0
    for _ in range(50):
        pair.now_ns += 100 * MS
        plan = pair.session.plan(pair.now_ns)
        if plan is not None:
            pair.session.finish(0, [], pair.now_ns)
            here = sum(rect.area for rect in plan.rects) // (64 * 16) + 1
            assert here <= REFINE_TILES + 40
            tiles += here
    assert tiles >= 40 * 12


def test_refined_to_what_was_wanted() -> None:
    """If it is not to be lossless, only what was sent worse than wanted comes again."""
    policy = QualityPolicy(lossless=False)
    pair = lossy_pair(SessionOptions(quality=policy))
    pair.update()
    assert pair.session.wake_ns(pair.now_ns) is None
    pair.session.updates.quality.observe(1 * MS)
    pair.session.updates.quality.observe(200 * MS)
    pair.draw(EVERYTHING)
    worse = pair.update()
    assert worse is not None
    assert worse.settings.quality == 7
    better = None
    for _ in range(4):
        better = better or pair.update(400)
    assert better is not None
    assert better.settings.quality == 8


def test_fine_quality_only_as_long_as_it_is_given() -> None:
    """Once the level falls, the level counts."""
    fine = encodings.FINE_QUALITY_0 + 77
    pair = Pair().running(encodings.TIGHT, fine, encodings.SUBSAMPLING_0 + 2, encodings.COMPRESSION_0 + 5)
    pair.viewer.request(incremental=False)
    plan = pair.update()
    assert plan is not None
    settings = plan.settings
    assert (settings.quality, settings.fine_quality, settings.subsampling) == (7, 77, 2)
    assert settings.compress_level == 5
    pair.session.updates.quality.observe(1)
    pair.session.updates.quality.observe(1000 * MS)
    pair.viewer.request(incremental=False)
    plan = pair.update()
    assert plan is not None
    assert (plan.settings.quality, plan.settings.fine_quality) == (5, None)


@pytest.mark.parametrize("encoding", [encodings.RAW, encodings.ZRLE, encodings.HEXTILE])
def test_encodings_without_loss_have_no_quality(encoding: int) -> None:
    """And nothing comes twice."""
    pair = Pair().running(encoding, QUALITY_8)
    pair.viewer.request(incremental=False)
    plan = pair.update()
    assert plan is not None
    assert plan.settings.quality is None
    assert plan.settings.encoding == encoding
    pair.viewer.request()
    pair.settle()
    assert pair.session.wake_ns(pair.now_ns) is None

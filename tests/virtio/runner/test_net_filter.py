"""The receive filter in C does what its plain twin does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvmm.kvm.net import PairFilter
from tvmm.virtio.net_control import RX_MODES
from tvmm.virtio.net_filter import BROADCAST, RxFilter

# Few different ones, so that tables have those that are looked for.
FIRST = st.sampled_from([0x01, 0x02, 0x33, 0x52, 0xFF])
ADDRESSES = st.just(BROADCAST) | st.builds(
    lambda first, last: bytes([first, 0, 0, 0, 0, last]), FIRST, st.integers(0, 80)
)
TABLES = st.none() | st.lists(ADDRESSES, max_size=64, unique=True).map(tuple)


@given(
    own=ADDRESSES,
    modes=st.sets(st.sampled_from(RX_MODES)),
    tables=st.none() | st.tuples(TABLES, TABLES),
    destinations=st.lists(ADDRESSES, min_size=1, max_size=20),
)
def test_the_filter_agrees_with_its_twin(
    own: bytes,
    modes: set[str],
    tables: tuple[tuple[bytes, ...] | None, tuple[bytes, ...] | None] | None,
    destinations: list[bytes],
) -> None:
    """For all modes and tables, those that were never set and those that are full among them."""
    twin = RxFilter(own)
    twin.reset(own)
    if tables is not None:
        twin.set_table(*tables)
    for mode in modes:
        twin.set_mode(mode, True)
    bits, unicast, multicast, any_unicast, any_multicast = twin.state()
    in_c = PairFilter(own, bits, unicast, multicast, any_unicast=any_unicast, any_multicast=any_multicast)
    for destination in [*destinations, own]:
        assert in_c.passes(destination) == twin.passes(destination)

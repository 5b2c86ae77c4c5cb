"""Builds the one extension module of tvmm; named in setup.py as a cffi module."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = (
    *("shim.c", "dirty.c", "vring.c", "vring_used.c", "serve.c", "histogram.c", "limit.c", "prompt.c"),
    *("blk_limit.c", "net_limit.c"),
    *("blk.c", "blk_request.c", "blk_step.c", "blk_engine.c", "blk_uring.c", "blk_image.c"),
    *("blk_kept.c", "blk_life.c", "blk_dirty.c"),
    *("nbd_link.c", "nbd_wire.c", "nbd_reply.c", "blk_nbd.c"),
    *("net.c", "net_tx.c", "net_rx.c", "net_stream.c"),
    *("vsock.c", "vsock_table.c", "vsock_conn.c", "vsock_tx.c", "vsock_rx.c"),
    *("pages.c", "dirty_log.c", "lanes.c", "lanes_gather.c", "lanes_receive.c"),
    *("uffd.c", "pager.c", "pager_serve.c", "page_server.c"),
    *("pixels.c", "rfb_pixels.c", "rfb_tiles.c", "rfb_tight.c", "scroll.c"),
    *("snapshot.c", "rounds.c"),
    *("vram.c", "discard.c", "remap.c"),
    *("live_claims.c", "live_handler.c", "live.c"),
)
"""One translation unit: the text of all of them is in the generated file, so that a change in one is a change of it."""

ffi = FFI()
ffi.cdef((HERE / "cdef.h").read_text())
ffi.set_source(
    "tvmm.kvm._kvm",
    "".join(f'#line 1 "tvmm/kvm/{name}"\n{(HERE / name).read_text()}' for name in SOURCES),
    include_dirs=[str(HERE)],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-fvisibility=hidden"],
)

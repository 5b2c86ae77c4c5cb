"""Live migration: a running guest moves to a peer, which may be hostile, and is never on both sides or on neither.

`source` and `destination` are the protocol as two tables, `messages` and `wire` its bytes, `policy` decides about
rounds; all of these are pure. `outgoing` and `incoming` carry it out with Trio. docs/migration-protocol.md has the
whole of it.
"""

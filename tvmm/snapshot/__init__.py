"""Snapshot files: a paused machine as one file, with each page of its RAM at a place of its own (docs/snapshots.md).

``format``, ``description`` and ``options`` are pure: bytes and records. ``files`` puts a file into its place in one
step, ``writer`` and ``reader`` are the two ends of one, ``sealing`` encrypts.
"""

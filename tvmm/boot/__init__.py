"""Kernel images into guest memory: bytes in, entry state out."""

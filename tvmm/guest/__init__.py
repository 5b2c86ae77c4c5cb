"""The built-in guest: sources in C and assembly, and `build.py`, which compiles them at install time."""

"""Many machines from one snapshot: one process reads it and forks, so that they share what they do not change.

``plan`` is pure: names, options that differ by a number, what machines of one host cannot share. ``family`` forks and
minds the processes, ``member`` is what each of them is beside its machine.
"""

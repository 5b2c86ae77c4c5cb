"""Fixtures for all tests: the machines that tvmm has for other people's tests too."""

from hypothesis import HealthCheck, settings

pytest_plugins = "tvmm.testing"

# How long an example takes says how busy the host is, and nothing about tvmm.
settings.register_profile("tvmm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tvmm")

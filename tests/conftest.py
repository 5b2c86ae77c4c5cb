"""Fixtures for all tests: the machines that tvmm has for other people's tests too."""

pytest_plugins = "tvmm.testing"

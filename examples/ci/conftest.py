"""What a test suite needs to have tvmm's fixtures."""

pytest_plugins = "tvmm.testing"

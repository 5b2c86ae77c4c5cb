"""Fakes and contract suites that several tests share."""

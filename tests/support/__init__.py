"""Helpers of the tests: the real parts, started and stopped."""

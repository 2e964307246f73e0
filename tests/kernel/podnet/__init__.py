"""Kernel tests: run as root, in network namespaces of their own."""

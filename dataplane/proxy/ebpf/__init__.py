"""Sockets that connect straight to a backend; engine.py tells the design. What sockets cannot do is left to packets.

Depends on `ext.bpf` for the programs, on `ext.libbpf` to load them, and on the nftables engine for what is left.
"""

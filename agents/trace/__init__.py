"""`kernelet trace`: what happens to a Service's connections, told by the kernel as it happens.

Promises: every TCP connection from this machine's sockets to the Service, with the backend it got and how long the
handshake took, and every packet of the Service's that the kernel drops, with the kernel's own reason; all other traffic
costs two hash lookups a connection and one or two a dropped packet. `collect` takes plain data (subject.py), so it
knows no API server. Depends on Debian's bcc, imported when a trace starts, on tracepoints and on the kernel's BTF:
neither kernel headers nor kprobes are needed. Never changes where a packet goes.
"""

"""`kernelet routes`: the route table that a node holds, what its kernel holds, and their difference.

Promises: both are taken at one moment, between two versions; the kernel's side is read from the kernel, never from what
an engine believes. The node makes the report (report.py, served by its kubelet's endpoint as /routes), the command
shows it (render.py) or, where all daemons are dead, reads the kernel by itself. Never changes a route.
"""

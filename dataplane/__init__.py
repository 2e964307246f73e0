"""What programs the kernel on one host: service proxy, overlay, pod network.

Promises: a change is one kernel transaction, an `ensure` writes only what differs, and what is in the kernel keeps
working when this process is gone. Depends on ext and pyroute2. Knows nothing of the API server: it is told routes and
peers as plain data.
"""

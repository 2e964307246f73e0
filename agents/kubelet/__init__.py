"""The kubelet: runs the pods bound to one node and reports what became of them.

Promises: a pod's pause container first, then its network, volumes and containers in order; status written when it
changes; a container that runs survives the kubelet's death and is adopted, not restarted; SIGTERM only after the routes
to the pod are withdrawn (where a RouteWaiter says so). The runtime, the pod network and the route waiter are Protocols
(`plugins.py`). Depends on core.api, core.client and on a container runtime. Never programs packets, never talks to the
store, and never trusts its own memory over the runtime's: labels on containers are the record.
"""

"""DNS on every node: the cluster's names from caches of Services and EndpointSlices, everything else forwarded.

Promises: answers follow the Kubernetes DNS specification 1.1.0; a name of the cluster is never asked upstream; the
server answers from its own node's cache, so it works while the control plane is away. Depends on dnslib and
core.client. Never programs packets: it is reached as endpoint of the Service kube-system/kube-dns.
"""

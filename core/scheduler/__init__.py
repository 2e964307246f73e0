"""Decides on which node each new pod runs, and binds it there.

Promises: a pod is only ever bound to a node that passed every filter, counting pods whose binding is still under way;
a pod that fits nowhere is told why in Kubernetes' words and tried again when something happens that may help; equally
good nodes are chosen from at random, so that replicas spread.

Two ways to change it, both found by entry points: plug-ins (`kernelet.scheduler.plugins`) that filter, score, reserve
or bind, and whole algorithms (`kernelet.scheduler.algorithms`). Pods choose a scheduler by `spec.schedulerName`.

Depends on `core.api` and `core.client`. It never talks to the store, the server's insides or a node.
"""

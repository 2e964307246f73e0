from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from lightkube.models.core_v1 import Container, PodSpec, ResourceRequirements
from support.scheduling import Cluster, node, pod, service

from kernelet.core.scheduler.framework import Helps, Unschedulable
from kernelet.core.scheduler.podinfo import PodInfo, pod_requests

NO_SCHEDULE = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}


def refusal(cluster: Cluster, wanted: Any) -> Unschedulable:
    with pytest.raises(Unschedulable) as caught:
        cluster.schedule(wanted)
    return caught.value


def test_the_message_counts_each_reason_as_kubernetes_words_it() -> None:
    cluster = Cluster(node("a", cpu="1"), node("b", taints=[NO_SCHEDULE]), node("c", taints=[NO_SCHEDULE]))
    message = str(refusal(cluster, pod("web", cpu="2")))
    assert message == ("0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {dedicated: db}.")


def test_pods_are_counted_from_the_moment_they_are_assumed() -> None:
    cluster = Cluster(node("a", cpu="1"), node("b", cpu="1"))
    assert {cluster.schedule(pod(f"p{n}", cpu="600m")) for n in range(2)} == {"a", "b"}
    assert "2 Insufficient cpu" in str(refusal(cluster, pod("third", cpu="600m")))


def test_a_node_full_of_pods_or_short_of_several_things_says_each() -> None:
    cluster = Cluster(node("a", cpu="1", memory="1Gi", pods=0))
    assert str(refusal(cluster, pod("web", cpu="2", memory="2Gi"))) == (
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods."
    )


def test_init_containers_count_at_their_peak_and_sidecars_throughout() -> None:
    def container(name: str, cpu: str, **more: Any) -> Container:
        return Container(name=name, resources=ResourceRequirements(requests={"cpu": cpu}), **more)

    spec = PodSpec(
        containers=[container("main", "1")],
        initContainers=[
            container("early", "3"),
            container("sidecar", "500m", restartPolicy="Always"),
            container("late", "2"),
        ],
    )
    assert pod_requests(spec) == {"cpu": 3000}
    spec.initContainers = spec.initContainers[1:] if spec.initContainers else None
    assert pod_requests(spec) == {"cpu": 2500}


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        ({"key": "dedicated", "operator": "Equal", "value": "db", "effect": "NoSchedule"}, True),
        ({"key": "dedicated", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "dedicated", "value": "web"}, False),
        ({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}, False),
    ],
)
def test_a_taint_keeps_pods_out_that_do_not_tolerate_it(toleration: dict[str, str], fits: bool) -> None:
    cluster = Cluster(node("a", taints=[NO_SCHEDULE]))
    wanted = pod("web", tolerations=[toleration])
    if fits:
        assert cluster.schedule(wanted) == "a"
    else:
        assert "untolerated taint" in str(refusal(cluster, wanted))


def test_a_node_with_a_mild_taint_is_chosen_last() -> None:
    mild = {"key": "busy", "effect": "PreferNoSchedule"}
    cluster = Cluster(node("a", taints=[mild]), node("b"))
    assert cluster.schedule(pod("web")) == "b"


def test_cordoned_nodes_get_no_pods() -> None:
    cluster = Cluster(node("a", unschedulable=True))
    assert str(refusal(cluster, pod("web"))) == "0/1 nodes are available: 1 node(s) were unschedulable."


def test_node_selector_and_required_affinity_must_both_hold() -> None:
    terms = [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z1", "z2"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["d"]}]},
        {},
    ]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    labels = {"a": {"zone": "z1"}, "b": {"zone": "z1", "disk": "ssd"}, "c": {"zone": "z3", "disk": "ssd"}}
    cluster = Cluster(*(node(name, labels=each) for name, each in labels.items()), node("d", labels={"disk": "hdd"}))
    assert cluster.schedule(pod("web", nodeSelector={"disk": "ssd"}, affinity=affinity)) == "b"
    assert cluster.schedule(pod("named", nodeSelector={"disk": "hdd"}, affinity=affinity)) == "d"
    assert "4 node(s) didn't match Pod's node affinity/selector" in str(
        refusal(cluster, pod("none", nodeSelector={"disk": "tape"}, affinity=affinity))
    )


@pytest.mark.parametrize(("operator", "values", "chosen"), [("Gt", ["3"], "b"), ("DoesNotExist", [], "a")])
def test_affinity_operators_compare_labels(operator: str, values: list[str], chosen: str) -> None:
    terms = [{"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    cluster = Cluster(node("a"), node("b", labels={"size": "4"}), node("c", labels={"size": "3"}))
    assert cluster.schedule(pod("web", affinity=affinity)) == chosen


def test_preferred_affinity_decides_between_equal_nodes() -> None:
    preference = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
    affinity = {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": preference}]}
    }
    cluster = Cluster(node("a"), node("b", labels={"disk": "ssd"}), node("c"))
    assert cluster.schedule(pod("web", affinity=affinity)) == "b"


def test_one_host_port_goes_to_one_pod_a_node_unless_on_different_addresses() -> None:
    def wanting(name: str, **port: Any) -> Any:
        return pod(name, ports=[{"containerPort": 80, "hostPort": 80, **port}])

    cluster = Cluster(node("a"))
    cluster.schedule(wanting("one", hostIP="10.0.0.1"))
    cluster.schedule(wanting("other-address", hostIP="10.0.0.2"))
    cluster.schedule(wanting("udp", protocol="UDP"))
    found = refusal(cluster, wanting("all-addresses"))
    assert "1 node(s) didn't have free ports for the requested pod ports" in str(found)
    assert Helps.POD_REMOVED in found.helps


def test_replicas_spread_evenly_over_equal_nodes() -> None:
    cluster = Cluster(*(node(name) for name in "abc"))
    placed = Counter(cluster.schedule(pod(f"web-{n}", owner="rs-1")) for n in range(9))
    assert placed == {"a": 3, "b": 3, "c": 3}


def test_pods_of_one_service_spread_though_other_pods_fill_a_node() -> None:
    cluster = Cluster(node("a"), node("b"), services=[service({"app": "web"})])
    for n in range(3):
        cluster.cache.assume(PodInfo(pod(f"other-{n}", cpu="100m")), "a")
    placed = Counter(cluster.schedule(pod(f"web-{n}", labels={"app": "web"})) for n in range(4))
    assert placed == {"a": 2, "b": 2}


def test_the_first_replica_goes_to_any_node_at_random() -> None:
    first = Counter(Cluster(*(node(name) for name in "abc")).schedule(pod("web")) for _ in range(60))
    assert set(first) == {"a", "b", "c"}


def constraint(**changes: Any) -> list[dict[str, Any]]:
    base = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    return [base | {"labelSelector": {"matchLabels": {"app": "web"}}} | changes]


def test_a_hard_spread_constraint_refuses_the_crowded_domain() -> None:
    zones = {"a": "z1", "b": "z1", "c": "z2"}
    cpus = {"a": "4", "b": "4", "c": "1"}
    labelled = [node(name, labels={"zone": zone}, cpu=cpus[name]) for name, zone in zones.items()]
    cluster = Cluster(*labelled, node("d"))

    def web(name: str) -> Any:
        return pod(name, cpu="500m", labels={"app": "web"}, topologySpreadConstraints=constraint())

    placed = Counter(zones[cluster.schedule(web(f"web-{n}"))] for n in range(4))
    assert placed == {"z1": 2, "z2": 2}
    cluster.schedule(web("z1-third"))
    assert str(refusal(cluster, web("sixth"))) == (
        "0/4 nodes are available: 1 Insufficient cpu, "
        "1 node(s) didn't match pod topology spread constraints (missing required label), "
        "2 node(s) didn't match pod topology spread constraints."
    )


def test_a_soft_spread_constraint_prefers_the_empty_domain() -> None:
    cluster = Cluster(node("a", labels={"zone": "z1"}), node("b", labels={"zone": "z2"}))
    soft = constraint(whenUnsatisfiable="ScheduleAnyway")
    placed = Counter(
        cluster.schedule(pod(f"web-{n}", labels={"app": "web"}, topologySpreadConstraints=soft)) for n in range(6)
    )
    assert placed == {"a": 3, "b": 3}


def test_the_emptier_node_is_preferred() -> None:
    cluster = Cluster(node("a"), node("b"))
    cluster.cache.assume(PodInfo(pod("big", cpu="3", memory="6Gi")), "a")
    assert {cluster.schedule(pod(f"p{n}", cpu="100m")) for n in range(5)} == {"b"}


def test_a_node_that_has_a_large_image_is_preferred() -> None:
    large = [{"names": ["app:latest"], "sizeBytes": 900 * 1024 * 1024}]
    cluster = Cluster(node("a"), node("b", images=large))
    assert cluster.schedule(pod("web", image="app")) == "b"


def inter_pod(direction: str, key: str, app: str, **term: Any) -> dict[str, Any]:
    required = [{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}} | term]
    return {direction: {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def test_a_pod_goes_near_the_pods_it_wants_and_may_be_the_first_of_its_kind() -> None:
    zones = {"a": "z1", "b": "z2", "c": "z2"}
    cluster = Cluster(*(node(name, labels={"zone": zone}) for name, zone in zones.items()), node("d"))
    near_db = inter_pod("podAffinity", "zone", "db")
    assert str(refusal(cluster, pod("web", affinity=near_db))) == (
        "0/4 nodes are available: 4 node(s) didn't match pod affinity rules."
    )
    first = zones[cluster.schedule(pod("db-0", labels={"app": "db"}, affinity=near_db))]
    assert {zones[cluster.schedule(pod(f"web-{n}", affinity=near_db))] for n in range(6)} == {first}
    elsewhere = pod("other", namespace="other", affinity=near_db)
    assert "didn't match pod affinity rules" in str(refusal(cluster, elsewhere))


def test_anti_affinity_keeps_pods_apart_in_both_directions() -> None:
    cluster = Cluster(node("a"), node("b"))
    alone = inter_pod("podAntiAffinity", "kubernetes.io/hostname", "db")
    placed = {cluster.schedule(pod(f"db-{n}", labels={"app": "db"}, affinity=alone)) for n in range(2)}
    assert placed == {"a", "b"}
    assert "2 node(s) didn't match pod anti-affinity rules" in str(
        refusal(cluster, pod("db-2", labels={"app": "db"}, affinity=alone))
    )
    assert "2 node(s) didn't satisfy existing pods anti-affinity rules" in str(
        refusal(cluster, pod("careless", labels={"app": "db"}))
    )
    cluster.cache.remove(("default", "db-0"))
    assert cluster.schedule(pod("db-3", labels={"app": "db"}, affinity=alone)) in placed


def test_a_preference_for_pods_decides_between_equal_nodes() -> None:
    cluster = Cluster(node("a"), node("b"), node("c"))
    home = cluster.schedule(pod("cache", labels={"app": "cache"}))
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "cache"}}}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    assert cluster.schedule(pod("near", affinity={"podAffinity": preferred})) == home
    assert cluster.schedule(pod("far", affinity={"podAntiAffinity": preferred})) != home

"""Applying a manifest sets what it says, removes what it no longer says, and touches nothing else."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api import defaulting, strategic
from kernelet.core.api.threeway import three_way_patch

from .samples import JSON, sample


def apply(last: JSON, wanted: JSON, current: JSON, struct: str = "Deployment") -> JSON:
    return strategic.merge(struct, current, three_way_patch(struct, last, wanted, current))


def test_what_is_already_so_needs_no_patch() -> None:
    kind, manifest = sample("Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "500m"
    live = copy.deepcopy(manifest)
    defaulting.apply_defaults(kind, live)
    live["status"] = {"readyReplicas": 1}
    assert three_way_patch("Deployment", manifest, manifest, live) == {}


def test_what_the_manifest_dropped_goes_and_what_others_set_stays() -> None:
    _, last = sample("Deployment")
    live = copy.deepcopy(last)
    live["spec"]["replicas"] = 7
    live["metadata"]["annotations"] = {"controller": "set this"}
    pod = live["spec"]["template"]["spec"]
    pod["containers"].append({"name": "sidecar", "image": "injected"})
    wanted = copy.deepcopy(last)
    web = wanted["spec"]["template"]["spec"]["containers"][0]
    web["image"] = "nginx:2"
    web["env"] = [{"name": "B", "value": "c"}]
    del wanted["metadata"]["labels"]
    found = apply(last, wanted, live)
    assert found["spec"]["replicas"] == 7
    assert found["metadata"]["annotations"] == {"controller": "set this"}
    assert "labels" not in found["metadata"]
    containers = found["spec"]["template"]["spec"]["containers"]
    assert [item["name"] for item in containers] == ["web", "sidecar"]
    assert containers[0]["image"] == "nginx:2"
    assert containers[0]["env"] == [{"name": "B", "value": "c"}]


def test_a_changed_strategy_loses_the_parameters_of_the_old_one() -> None:
    live = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}}}
    wanted = {"spec": {"strategy": {"type": "Recreate"}}}
    assert apply({}, wanted, live) == wanted


def test_a_volume_of_another_kind_replaces_the_old_one() -> None:
    live = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "token", "projected": {}}]}}
    wanted = {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}
    found = apply(live, wanted, live, "Pod")
    assert found["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}]


names = st.sampled_from("abc")
env = st.lists(st.fixed_dictionaries({"name": names, "value": names}), max_size=3, unique_by=lambda item: item["name"])
container = st.fixed_dictionaries(
    {"name": names},
    optional={"image": names, "env": env, "command": st.lists(names, min_size=1, max_size=2)},
)
containers = st.lists(container, min_size=1, max_size=3, unique_by=lambda item: item["name"])
manifests = st.fixed_dictionaries(
    {"spec": st.fixed_dictionaries({"containers": containers})},
    optional={"metadata": st.fixed_dictionaries({"labels": st.dictionaries(names, names, max_size=2)})},
)


def says(wanted: Any, found: Any) -> bool:
    """Whether an object has all that a manifest says."""
    if isinstance(wanted, dict):
        return all(key in found and says(value, found[key]) for key, value in wanted.items())
    if wanted == []:
        return isinstance(found, list)
    if isinstance(wanted, list) and isinstance(wanted[0], dict):
        by_name = {item["name"]: item for item in found}
        return all(item["name"] in by_name and says(item, by_name[item["name"]]) for item in wanted)
    return bool(wanted == found)


@given(manifests, manifests, manifests)
def test_after_applying_the_object_says_what_the_manifest_says(last: JSON, wanted: JSON, live: JSON) -> None:
    found = apply(last, wanted, live, "Pod")
    assert says(wanted, found)
    assert three_way_patch("Pod", wanted, wanted, found) == {}


@given(manifests, manifests)
def test_without_foreign_changes_applying_makes_the_object_the_manifest(last: JSON, wanted: JSON) -> None:
    found = apply(last, wanted, last, "Pod")
    assert found["spec"] == wanted["spec"]
    assert (found.get("metadata") or {}) == (wanted.get("metadata") or {})

"""Rules of pods and pod templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .causes import duplicate, forbidden, invalid_value, not_supported, required
from .errors import JSON, Cause
from .names import dns_label_problem, dns_subdomain_problem, ip_problem, qualified_name_problem
from .validation_container import check_container
from .validation_labels import check_labels, check_selector

_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_UNSATISFIABLE = ("DoNotSchedule", "ScheduleAnyway")
_NODE_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_HOST_PATH_TYPES = ("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
_MUTABLE_FIELDS = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds`"
)


def check_pod(obj: JSON) -> Iterator[Cause]:
    yield from check_pod_spec("spec", obj["spec"])


def check_pod_spec(path: str, spec: JSON) -> Iterator[Cause]:
    """A PodSpec of the right types, defaults applied, that stands at a JSON path."""
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or []):
        yield from _check_volume(f"{path}.volumes[{index}]", volume, volumes)
    if not spec["containers"]:
        yield required(f"{path}.containers")
    names: set[str] = set()
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(key) or []):
            yield from check_container(f"{path}.{key}[{index}]", container, names, volumes)
    yield from _check_host_ports(path, spec)
    if spec["restartPolicy"] not in _RESTART_POLICIES:
        yield not_supported(f"{path}.restartPolicy", spec["restartPolicy"], _RESTART_POLICIES)
    if spec["dnsPolicy"] not in _DNS_POLICIES:
        yield not_supported(f"{path}.dnsPolicy", spec["dnsPolicy"], _DNS_POLICIES)
    if spec["dnsPolicy"] == "None" and not (spec.get("dnsConfig") or {}).get("nameservers"):
        yield required(
            f"{path}.dnsConfig.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None"
        )
    if spec["terminationGracePeriodSeconds"] < 0:
        yield invalid_value(
            f"{path}.terminationGracePeriodSeconds", spec["terminationGracePeriodSeconds"], "must be non-negative"
        )
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and deadline < 1:
        yield invalid_value(f"{path}.activeDeadlineSeconds", deadline, "must be greater than 0")
    yield from _check_names(path, spec)
    yield from check_labels(f"{path}.nodeSelector", spec.get("nodeSelector"))
    for index, toleration in enumerate(spec.get("tolerations") or []):
        yield from _check_toleration(f"{path}.tolerations[{index}]", toleration)
    for index, constraint in enumerate(spec.get("topologySpreadConstraints") or []):
        yield from _check_spread(f"{path}.topologySpreadConstraints[{index}]", constraint)
    yield from _check_affinity(f"{path}.affinity", spec.get("affinity") or {})
    for index, alias in enumerate(spec.get("hostAliases") or []):
        if wrong := ip_problem(alias["ip"]):
            yield invalid_value(f"{path}.hostAliases[{index}].ip", alias["ip"], wrong)


def _check_names(path: str, spec: JSON) -> Iterator[Cause]:
    for field in ("serviceAccountName", "nodeName", "schedulerName", "priorityClassName", "runtimeClassName"):
        value = spec.get(field)
        if value and (wrong := dns_subdomain_problem(value)):
            yield invalid_value(f"{path}.{field}", value, wrong)
    for field in ("hostname", "subdomain"):
        value = spec.get(field)
        if value and (wrong := dns_label_problem(value)):
            yield invalid_value(f"{path}.{field}", value, wrong)


def _check_host_ports(path: str, spec: JSON) -> Iterator[Cause]:
    """No two containers of a pod may want the same port of the host; on the host's network all ports are such."""
    taken: set[tuple[str, str, int]] = set()
    for index, container in enumerate(spec["containers"]):
        for number, port in enumerate(container.get("ports") or []):
            where, host_port = f"{path}.containers[{index}].ports[{number}]", port.get("hostPort")
            if not host_port:
                continue
            if spec.get("hostNetwork") and host_port != port["containerPort"]:
                yield invalid_value(
                    f"{where}.containerPort", port["containerPort"], "must match `hostPort` when `hostNetwork` is true"
                )
            key = (port["protocol"], port.get("hostIP") or "", host_port)
            if key in taken:
                yield duplicate(f"{where}.hostPort", f"{key[0]}/{key[1]}/{key[2]}")
            taken.add(key)


def _check_volume(path: str, volume: JSON, names: set[str]) -> Iterator[Cause]:
    name = volume["name"]
    if not name:
        yield required(f"{path}.name")
    elif wrong := dns_label_problem(name):
        yield invalid_value(f"{path}.name", name, wrong)
    elif name in names:
        yield duplicate(f"{path}.name", name)
    names.add(name)
    sources = [key for key in volume if key != "name"]
    if len(sources) > 1:
        yield forbidden(f"{path}.{sources[1]}", "may not specify more than 1 volume type")
    host = volume.get("hostPath")
    if host is not None:
        if not host["path"]:
            yield required(f"{path}.hostPath.path")
        elif ".." in host["path"].split("/"):
            yield invalid_value(f"{path}.hostPath.path", host["path"], "must not contain '..'")
        if host.get("type", "") not in _HOST_PATH_TYPES:
            yield not_supported(f"{path}.hostPath.type", host["type"], _HOST_PATH_TYPES)
    if "secret" in volume and not volume["secret"].get("secretName"):
        yield required(f"{path}.secret.secretName")
    if "configMap" in volume and not volume["configMap"].get("name"):
        yield required(f"{path}.configMap.name")
    for key in ("secret", "configMap", "downwardAPI", "projected"):
        if key in volume:
            yield from _check_files(f"{path}.{key}", volume[key])


def _check_files(path: str, source: JSON) -> Iterator[Cause]:
    mode = source.get("defaultMode")
    if mode is not None and not 0 <= mode <= 0o777:
        yield invalid_value(f"{path}.defaultMode", mode, "must be a number between 0 and 0777 (octal), both inclusive")
    for index, item in enumerate(source.get("items") or []):
        where = f"{path}.items[{index}].path"
        if not item["path"]:
            yield required(where)
        elif item["path"].startswith("/"):
            yield invalid_value(where, item["path"], "must be a relative path")
        elif ".." in item["path"].split("/"):
            yield invalid_value(where, item["path"], "must not contain '..'")


def _check_toleration(path: str, toleration: JSON) -> Iterator[Cause]:
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    effect, seconds = toleration.get("effect") or "", toleration.get("tolerationSeconds")
    if key and (wrong := qualified_name_problem(key)):
        yield invalid_value(f"{path}.key", key, wrong)
    if not key and operator != "Exists":
        yield invalid_value(
            f"{path}.operator",
            operator,
            'operator must be Exists when `key` is empty, which means "match all values and all keys"',
        )
    if operator not in ("Equal", "Exists", "Lt", "Gt"):
        yield not_supported(f"{path}.operator", operator, ("Equal", "Exists"))
    if operator == "Exists" and toleration.get("value"):
        yield invalid_value(f"{path}.operator", toleration["value"], "value must be empty when `operator` is 'Exists'")
    if effect and effect not in _EFFECTS:
        yield not_supported(f"{path}.effect", effect, _EFFECTS)
    if seconds is not None and effect != "NoExecute":
        yield invalid_value(f"{path}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")


def _check_spread(path: str, constraint: JSON) -> Iterator[Cause]:
    if constraint["maxSkew"] < 1:
        yield invalid_value(f"{path}.maxSkew", constraint["maxSkew"], "must be greater than zero")
    if not constraint["topologyKey"]:
        yield required(f"{path}.topologyKey", "can not be empty")
    if constraint["whenUnsatisfiable"] not in _UNSATISFIABLE:
        yield not_supported(f"{path}.whenUnsatisfiable", constraint["whenUnsatisfiable"], _UNSATISFIABLE)
    yield from check_selector(f"{path}.labelSelector", constraint.get("labelSelector") or {})


def _check_affinity(path: str, affinity: JSON) -> Iterator[Cause]:
    node = affinity.get("nodeAffinity") or {}
    wanted = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    if wanted is not None:
        where = f"{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
        if not wanted["nodeSelectorTerms"]:
            yield required(where, "must have at least one node selector term")
        for index, term in enumerate(wanted["nodeSelectorTerms"]):
            yield from _check_node_term(f"{where}[{index}]", term)
    for index, weighted in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution") or []):
        where = f"{path}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
        yield from _check_weight(where, weighted)
        yield from _check_node_term(f"{where}.preference", weighted["preference"])
    for kind in ("podAffinity", "podAntiAffinity"):
        terms = affinity.get(kind) or {}
        for index, term in enumerate(terms.get("requiredDuringSchedulingIgnoredDuringExecution") or []):
            where = f"{path}.{kind}.requiredDuringSchedulingIgnoredDuringExecution[{index}]"
            yield from _check_pod_term(where, term)
        for index, weighted in enumerate(terms.get("preferredDuringSchedulingIgnoredDuringExecution") or []):
            where = f"{path}.{kind}.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
            yield from _check_weight(where, weighted)
            yield from _check_pod_term(f"{where}.podAffinityTerm", weighted["podAffinityTerm"])


def _check_weight(path: str, weighted: JSON) -> Iterator[Cause]:
    if not 1 <= weighted["weight"] <= 100:
        yield invalid_value(f"{path}.weight", weighted["weight"], "must be in the range 1-100")


def _check_node_term(path: str, term: JSON) -> Iterator[Cause]:
    for field in ("matchExpressions", "matchFields"):
        for index, item in enumerate(term.get(field) or []):
            where, operator, values = f"{path}.{field}[{index}]", item["operator"], item.get("values") or []
            if operator not in _NODE_OPERATORS:
                yield not_supported(f"{where}.operator", operator, _NODE_OPERATORS)
            elif operator in ("In", "NotIn") and not values:
                yield required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
            elif operator in ("Gt", "Lt") and len(values) != 1:
                yield required(f"{where}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
            elif operator in ("Exists", "DoesNotExist") and values:
                yield forbidden(f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")


def _check_pod_term(path: str, term: JSON) -> Iterator[Cause]:
    if not term["topologyKey"]:
        yield required(f"{path}.topologyKey", "can not be empty")
    yield from check_selector(f"{path}.labelSelector", term.get("labelSelector") or {})


def check_pod_update(obj: JSON, old: JSON) -> Iterator[Cause]:
    """Of a pod's spec only images, deadlines and further tolerations may change."""
    new_spec, old_spec = obj["spec"], old.get("spec") or {}
    if _fixed(new_spec) != _fixed(old_spec):
        yield forbidden("spec", _MUTABLE_FIELDS)
        return
    for key in ("initContainers", "containers"):
        for index, container in enumerate(new_spec.get(key) or []):
            if not container.get("image"):
                yield required(f"spec.{key}[{index}].image")
    tolerations = new_spec.get("tolerations") or []
    if any(toleration not in tolerations for toleration in old_spec.get("tolerations") or []):
        yield forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")


def _fixed(spec: JSON) -> dict[str, Any]:
    """What must stay the same of a pod's spec."""
    kept = {
        key: value
        for key, value in spec.items()
        if key not in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "ephemeralContainers")
    }
    for key in ("initContainers", "containers"):
        if key in kept:
            kept[key] = [{name: c[name] for name in c if name != "image"} for c in kept[key]]
    return kept

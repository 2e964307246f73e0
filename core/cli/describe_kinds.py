"""What `describe` says of pods, nodes, services and workloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernelet.core.api import resources, table, times
from kernelet.core.api.errors import JSON
from kernelet.core.api.table_pods import pod_status

from .describe_text import Text, timestamp

_CONDITIONS = ["Type", "Status", "Since", "Reason", "Message"]


def _conditions(text: Text, status: JSON) -> None:
    now = times.now()
    rows = [
        [item.get("type", ""), item.get("status", ""), table.since(item.get("lastTransitionTime"), now),
         item.get("reason", ""), item.get("message", "")]
        for item in status.get("conditions") or []
    ]  # fmt: skip
    text.table("Conditions", _CONDITIONS, rows)


def pod(text: Text, obj: JSON) -> None:
    spec, status = obj["spec"], obj.get("status") or {}
    text.line("Service Account", spec.get("serviceAccountName") or "<none>")
    text.line("Node", "/".join(filter(None, (spec.get("nodeName"), status.get("hostIP")))) or "<none>")
    timestamp(text, obj)
    text.line("Status", pod_status(obj))
    if status.get("message"):
        text.line("Message", status["message"])
    text.line("IP", status.get("podIP") or "<none>")
    text.line("QoS Class", status.get("qosClass") or resources.qos_class(spec))
    for key, title in (("initContainers", "Init Containers"), ("containers", "Containers")):
        if spec.get(key):
            states = {item["name"]: item for item in status.get(f"{key[:-1]}Statuses") or []}
            with text.section(title):
                for container in spec[key]:
                    _container(text, container, states.get(container["name"], {}))
    _conditions(text, status)
    _volumes(text, spec)
    text.mapping("Node-Selectors", spec.get("nodeSelector"))
    text.line("Tolerations", "\n".join(_toleration(item) for item in spec.get("tolerations") or []) or "<none>")


def _container(text: Text, container: JSON, status: JSON) -> None:
    with text.section(container["name"]):
        if status.get("containerID"):
            text.line("Container ID", status["containerID"])
        text.line("Image", container.get("image", ""))
        ports = [f"{port.get('containerPort')}/{port.get('protocol', 'TCP')}" for port in container.get("ports") or []]
        text.line("Ports", ", ".join(ports) or "<none>")
        for field in ("command", "args"):
            if container.get(field):
                text.line(field.capitalize(), " ".join(container[field]))
        if status:
            text.line("State", _state(status.get("state") or {}))
            if status.get("lastState"):
                text.line("Last State", _state(status["lastState"]))
            text.line("Ready", status.get("ready", False))
            text.line("Restart Count", status.get("restartCount", 0))
        for field in ("limits", "requests"):
            amounts = (container.get("resources") or {}).get(field)
            if amounts:
                text.line(field.capitalize(), ", ".join(f"{name} {amount}" for name, amount in amounts.items()))
        for field in ("livenessProbe", "readinessProbe", "startupProbe"):
            if container.get(field):
                text.line(field.removesuffix("Probe").capitalize(), _probe(container[field]))
        text.line("Environment", "\n".join(_env(item) for item in container.get("env") or []) or "<none>")
        mounts = [
            f"{item['mountPath']} from {item['name']} ({'ro' if item.get('readOnly') else 'rw'})"
            for item in container.get("volumeMounts") or []
        ]
        text.line("Mounts", "\n".join(mounts) or "<none>")


def _state(state: JSON) -> str:
    for name, details in state.items():
        facts = [str(details[key]) for key in ("reason", "message") if details.get(key)]
        if "exitCode" in details:
            facts.append(f"exit code {details['exitCode']}")
        facts += [f"{key.removesuffix('At')} {details[key]}" for key in ("startedAt", "finishedAt") if details.get(key)]
        return f"{name.capitalize()} ({', '.join(facts)})" if facts else str(name.capitalize())
    return "Waiting"


def _probe(probe: JSON) -> str:
    what = "exec " + " ".join((probe.get("exec") or {}).get("command") or [])
    if probe.get("httpGet"):
        get = probe["httpGet"]
        what = (
            f"http-get {get.get('scheme', 'HTTP').lower()}://{get.get('host', '')}:{get['port']}{get.get('path', '/')}"
        )
    elif probe.get("tcpSocket"):
        what = f"tcp-socket {probe['tcpSocket'].get('host', '')}:{probe['tcpSocket']['port']}"
    elif probe.get("grpc"):
        what = f"grpc :{probe['grpc']['port']}"
    return (
        f"{what} delay={probe.get('initialDelaySeconds', 0)}s timeout={probe.get('timeoutSeconds', 1)}s "
        f"period={probe.get('periodSeconds', 10)}s success={probe.get('successThreshold', 1)} "
        f"failure={probe.get('failureThreshold', 3)}"
    )


def _env(item: JSON) -> str:
    source = item.get("valueFrom")
    if not source:
        return f"{item['name']}={item.get('value', '')}"
    for kind, reference in source.items():
        if kind == "fieldRef":
            return f"{item['name']} from field {reference.get('fieldPath')}"
        place = reference.get("name") or reference.get("containerName") or ""
        key = reference.get("key") or reference.get("resource") or ""
        return f"{item['name']} from {kind.removesuffix('Ref').removesuffix('Key')} {place} {key}".rstrip()
    return str(item["name"])


def _volumes(text: Text, spec: JSON) -> None:
    rows = []
    for volume in spec.get("volumes") or []:
        kind = next((key for key in volume if key != "name"), "")
        source: JSON = volume.get(kind) or {}
        of = source.get("path") or source.get("secretName") or source.get("name") or source.get("claimName") or ""
        rows.append([volume["name"], kind, of])
    text.table("Volumes", ["Name", "Type", "Of"], rows)


def _toleration(item: JSON) -> str:
    value = f"={item['value']}" if item.get("value") else ""
    effect = f":{item['effect']}" if item.get("effect") else ""
    seconds = f" for {item['tolerationSeconds']}s" if item.get("tolerationSeconds") is not None else ""
    operator = " op=Exists" if item.get("operator") == "Exists" else ""
    return f"{item.get('key', '')}{value}{effect}{operator}{seconds}"


def node(text: Text, obj: JSON, pods: Sequence[JSON]) -> None:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    timestamp(text, obj)
    text.line("Status", table.node_status(obj))
    text.line("Taints", "\n".join(_toleration(item) for item in spec.get("taints") or []) or "<none>")
    text.line("Unschedulable", bool(spec.get("unschedulable")))
    _conditions(text, status)
    addresses = {item.get("type", ""): item.get("address", "") for item in status.get("addresses") or []}
    text.mapping("Addresses", addresses, ": ")
    for field in ("capacity", "allocatable"):
        text.mapping(field.capitalize(), status.get(field), ": ")
    text.mapping("System Info", status.get("nodeInfo"), ": ")
    text.line("Pod CIDRs", ", ".join(spec.get("podCIDRs") or []) or "<none>")
    rows = []
    for item in pods:
        metadata = item["metadata"]
        rows.append([metadata.get("namespace", ""), metadata["name"], pod_status(item), *_requests(item["spec"])])
    text.table(f"Pods ({len(pods)})", ["Namespace", "Name", "Status", "CPU", "Memory"], rows)


def _requests(spec: JSON) -> list[str]:
    """CPU and memory a pod's containers ask for."""
    asked: list[dict[str, Any]] = [
        (item.get("resources") or {}).get("requests") or {} for item in spec.get("containers") or []
    ]
    cpu = sum(resources.cpu_millis(str(item["cpu"])) for item in asked if "cpu" in item)
    memory = sum(resources.bytes_of(str(item["memory"])) for item in asked if "memory" in item)
    return [f"{cpu}m", f"{memory // 2**20}Mi"]


_SERVICE_FIELDS = (
    ("externalName", "External Name"),
    ("externalIPs", "External IPs"),
    ("internalTrafficPolicy", "Internal Policy"),
    ("externalTrafficPolicy", "External Policy"),
    ("healthCheckNodePort", "HealthCheck NodePort"),
    ("loadBalancerSourceRanges", "Source Ranges"),
    ("trafficDistribution", "Traffic Distribution"),
)


def service(text: Text, obj: JSON, slices: Sequence[JSON]) -> None:
    spec = obj["spec"]
    timestamp(text, obj)
    text.line("Selector", table.format_labels(spec.get("selector")))
    text.line("Type", spec.get("type", "ClusterIP"))
    text.line("IPs", ", ".join(spec.get("clusterIPs") or [spec.get("clusterIP") or "<none>"]))
    for port in spec.get("ports") or []:
        named = port.get("name") or "<unset>"
        text.line("Port", f"{named}  {port['port']}/{port.get('protocol', 'TCP')}")
        text.line("TargetPort", port.get("targetPort", port["port"]))
        if port.get("nodePort"):
            text.line("NodePort", f"{named}  {port['nodePort']}/{port.get('protocol', 'TCP')}")
        ready, others = _endpoints(slices, port.get("name") or "")
        text.line("Endpoints", ", ".join(ready) or "<none>")
        if others:
            text.line("Not Ready", ", ".join(others))
    text.line("Session Affinity", spec.get("sessionAffinity", "None"))
    for field, title in _SERVICE_FIELDS:
        if value := spec.get(field):
            text.line(title, ", ".join(value) if isinstance(value, list) else value)
    ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    if ingress:
        text.line("LoadBalancer", ", ".join(entry.get("ip") or entry.get("hostname") or "" for entry in ingress))


def _endpoints(slices: Sequence[JSON], port_name: str) -> tuple[list[str], list[str]]:
    """Ready and other addresses of a service's port."""
    ready: list[str] = []
    others: list[str] = []
    for item in slices:
        for port in item.get("ports") or []:
            if (port.get("name") or "") != port_name:
                continue
            for endpoint in item.get("endpoints") or []:
                chosen = others if (endpoint.get("conditions") or {}).get("ready") is False else ready
                chosen += [f"{address}:{port.get('port')}" for address in endpoint.get("addresses") or []]
    return ready, others


def _template(text: Text, spec: JSON) -> None:
    template = spec.get("template") or {}
    with text.section("Pod Template"):
        text.mapping("Labels", (template.get("metadata") or {}).get("labels"))
        annotations = (template.get("metadata") or {}).get("annotations")
        if annotations:
            text.mapping("Annotations", annotations, ": ")
        pod_spec = template.get("spec") or {}
        with text.section("Containers"):
            for container in pod_spec.get("containers") or []:
                _container(text, container, {})
        _volumes(text, pod_spec)


def replicated(text: Text, obj: JSON) -> None:
    spec, status = obj["spec"], obj.get("status") or {}
    timestamp(text, obj)
    selector = spec.get("selector") or {}
    structured = "matchLabels" in selector or "matchExpressions" in selector
    text.line("Selector", table.format_selector(selector) if structured else table.format_labels(selector))
    counts = f"{status.get('replicas', 0)} current / {spec.get('replicas', 0)} desired"
    text.line(
        "Replicas", f"{counts}, {status.get('readyReplicas', 0)} ready, {status.get('availableReplicas', 0)} available"
    )
    _template(text, spec)
    _conditions(text, status)


def deployment(text: Text, obj: JSON) -> None:
    spec, status = obj["spec"], obj.get("status") or {}
    timestamp(text, obj)
    text.line("Selector", table.format_selector(spec.get("selector") or {}))
    counts = [
        f"{spec.get('replicas', 0)} desired",
        *(f"{status.get(f'{name}Replicas', 0)} {name}" for name in ("updated", "ready", "available", "unavailable")),
        f"{status.get('replicas', 0)} total",
    ]
    text.line("Replicas", " | ".join(counts))
    strategy = spec.get("strategy") or {}
    text.line("Strategy", strategy.get("type", "RollingUpdate"))
    rolling = strategy.get("rollingUpdate")
    if rolling:
        limits = f"{rolling.get('maxUnavailable')} max unavailable, {rolling.get('maxSurge')} max surge"
        text.line("Rolling Update", limits)
    if spec.get("paused"):
        text.line("Paused", True)
    _template(text, spec)
    _conditions(text, status)

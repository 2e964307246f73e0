"""Label and field selectors: the string forms of the API, the object form of specs, and matching.

Source: apimachinery labels.Parse and fields.ParseSelector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import JSON, BadRequest
from .kinds import Kind
from .names import label_value_problem, qualified_name_problem

IN, NOT_IN, EXISTS, MISSING, GREATER, LESS = "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"

_SET = re.compile(r"\s*([^\s!=<>(),]+)\s+(in|notin)\s*\(([^()]*)\)\s*")
_COMPARE = re.compile(r"\s*([^\s!=<>(),]+)\s*(==|=|!=|>|<)\s*([^\s!=<>(),]*)\s*")
_PRESENCE = re.compile(r"\s*(!?)\s*([^\s!=<>(),]+)\s*")
_OPERATORS = {"=": IN, "==": IN, "!=": NOT_IN, ">": GREATER, "<": LESS, "in": IN, "notin": NOT_IN}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. `values` is empty for Exists and DoesNotExist, one integer for Gt and Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == IN:
            return value in self.values
        if self.operator == NOT_IN:
            return value not in self.values
        if self.operator == EXISTS:
            return value is not None
        if self.operator == MISSING:
            return value is None
        number = _integer(value)
        limit = _integer(self.values[0])
        if number is None or limit is None:
            return False
        return number > limit if self.operator == GREATER else number < limit

    def __str__(self) -> str:
        if self.operator == EXISTS:
            return self.key
        if self.operator == MISSING:
            return f"!{self.key}"
        if self.operator in (GREATER, LESS):
            return f"{self.key}{'>' if self.operator == GREATER else '<'}{self.values[0]}"
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.operator == IN else '!='}{self.values[0]}"
        return f"{self.key} {'in' if self.operator == IN else 'notin'} ({','.join(self.values)})"


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements must hold; none (`empty`) matches everything, `nothing` matches no labels at all."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    @property
    def empty(self) -> bool:
        return not self.requirements and not self.nothing

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.nothing and all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements)

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        """The string form: `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>1`. Raises BadRequest naming the position."""
        found: list[Requirement] = []
        position = 0
        if not text.strip():
            return cls()
        while True:
            requirement, position = _parse_one(text, position)
            found.append(requirement)
            if position == len(text):
                return cls(tuple(found))
            if text[position] != ",":
                raise _unparsable(text, position)
            position += 1

    @classmethod
    def from_map(cls, labels: Mapping[str, str]) -> LabelSelector:
        """Equality on every label, as a Service's or a ReplicationController's selector."""
        return cls(tuple(Requirement(key, IN, (value,)) for key, value in labels.items()))

    @classmethod
    def from_object(cls, selector: Mapping[str, Any] | None) -> LabelSelector:
        """meta/v1 LabelSelector: None matches nothing, an empty one everything. Raises BadRequest."""
        if selector is None:
            return cls(nothing=True)
        found = list(cls.from_map(selector.get("matchLabels") or {}).requirements)
        for item in selector.get("matchExpressions") or []:
            operator = item.get("operator", "")
            if operator not in (IN, NOT_IN, EXISTS, MISSING, GREATER, LESS):
                raise BadRequest(f'"{operator}" is not a valid label selector operator')
            found.append(_checked(str(item.get("key", "")), operator, tuple(item.get("values") or ())))
        return cls(tuple(found))


def _parse_one(text: str, position: int) -> tuple[Requirement, int]:
    if match := _SET.match(text, position):
        key, operator, values = match.groups()
        return _checked(key, _OPERATORS[operator], tuple(value.strip() for value in values.split(","))), match.end()
    if match := _COMPARE.match(text, position):
        key, operator, value = match.groups()
        return _checked(key, _OPERATORS[operator], (value,)), match.end()
    if match := _PRESENCE.match(text, position):
        return _checked(match[2], MISSING if match[1] else EXISTS, ()), match.end()
    raise _unparsable(text, position)


def _unparsable(text: str, position: int) -> BadRequest:
    return BadRequest(
        f"unable to parse requirement: {text!r} at position {position}: expected key, key=value, key!=value, "
        "key in (a,b), key notin (a,b) or !key, separated by commas"
    )


def _checked(key: str, operator: str, values: tuple[str, ...]) -> Requirement:
    if problem := qualified_name_problem(key):
        raise BadRequest(f'unable to parse requirement: key: Invalid value: "{key}": {problem}')
    for value in values:
        if not isinstance(value, str):
            raise BadRequest(f"unable to parse requirement: values[{key}]: {value!r} is not a string")
        if problem := label_value_problem(value):
            raise BadRequest(f'unable to parse requirement: values[{key}]: Invalid value: "{value}": {problem}')
    if operator in (IN, NOT_IN) and not values:
        raise BadRequest(f"values[{key}]: for 'in', 'notin' operators, values set can't be empty")
    if operator in (EXISTS, MISSING) and values:
        raise BadRequest(f"values[{key}]: values set must be empty for exists and does not exist")
    if operator in (GREATER, LESS) and (len(values) != 1 or _integer(values[0]) is None):
        raise BadRequest(f"values[{key}]: for 'Gt', 'Lt' operators, exactly one integer value is required")
    return Requirement(key, operator, values)


_COMMON_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_FIELDS: dict[tuple[str, str], frozenset[str]] = {
    ("", "Pod"): frozenset(
        [
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    ),
    ("", "Event"): frozenset(
        [
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ]
    ),
    ("", "Node"): frozenset({"spec.unschedulable"}),
    ("", "Secret"): frozenset({"type"}),
    ("", "Namespace"): frozenset({"status.phase"}),
    ("", "Service"): frozenset({"spec.clusterIP", "spec.type"}),
    ("", "ReplicationController"): frozenset({"status.replicas"}),
    ("apps", "ReplicaSet"): frozenset({"status.replicas"}),
}
_FALSE_WHEN_ABSENT = frozenset({"spec.hostNetwork", "spec.unschedulable"})
_ZERO_WHEN_ABSENT = frozenset({"status.replicas"})


def supported_fields(kind: Kind) -> frozenset[str]:
    """The fields a field selector may name for a kind."""
    return _COMMON_FIELDS | _FIELDS.get((kind.group, kind.kind), frozenset())


def field_value(obj: JSON, path: str) -> str:
    """The text a field selector compares with; "" where the field is absent."""
    value: Any = obj
    if path == "source":
        value = (obj.get("source") or {}).get("component") or obj.get("reportingComponent")
    elif path == "status.podIPs":
        value = ",".join(entry.get("ip", "") for entry in (obj.get("status") or {}).get("podIPs") or [])
    else:
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return "false" if path in _FALSE_WHEN_ABSENT else "0" if path in _ZERO_WHEN_ABSENT else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Equality and inequality of fields: (path, equal, value) each; all must hold."""

    terms: tuple[tuple[str, bool, str], ...] = ()

    @property
    def empty(self) -> bool:
        return not self.terms

    @classmethod
    def parse(cls, text: str) -> FieldSelector:
        """`status.phase!=Running,spec.nodeName=n1`; `\\\\`, `\\,` and `\\=` stand for themselves. Raises BadRequest."""
        terms = []
        for term in re.findall(r"(?:[^\\,]|\\.)+", text):
            match = re.fullmatch(r"([^\\=!,]+)(!=|==|=)((?:[^\\=,]|\\[\\,=])*)", term)
            if match is None:
                raise BadRequest(f"invalid selector: {text!r}; can't understand {term!r}: expected field=value")
            terms.append((match[1], match[2] != "!=", re.sub(r"\\(.)", r"\1", match[3])))
        return cls(tuple(terms))

    def check(self, kind: Kind) -> None:
        """Raises BadRequest where a field is not one the kind can be selected by, naming those it can."""
        supported = supported_fields(kind)
        for path, _, _ in self.terms:
            if path not in supported:
                choices = ", ".join(sorted(supported))
                raise BadRequest(f"field label not supported: {path}; {kind.plural} can be selected by {choices}")

    def matches(self, kind: Kind, obj: JSON) -> bool:
        """Raises BadRequest as `check` does."""
        self.check(kind)
        return all((field_value(obj, path) == value) is equal for path, equal, value in self.terms)

    def exact(self, path: str) -> str | None:
        """The one value a field must have, if the selector says so: lets a list look up instead of scanning."""
        return next((value for field, equal, value in self.terms if equal and field == path), None)

"""What the engine believes the kernel holds: frontends, who owns each, and the local backends.

Changes are worked out on the side (`Transition`) and taken over only after the kernel has accepted them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .elements import (
    Edits,
    Elements,
    Frontend,
    Held,
    Place,
    Plan,
    Target,
    Value,
    hold,
    slot_key,
    slot_suffixes,
    special_elements,
)
from .ruleset import HAIRPIN, Family
from .untracked import BACKEND_PORTS

_NOTHING: dict[bytes, Value] = {}


@dataclass(slots=True)
class Transition:
    """Consequences of a change, not yet taken over."""

    frontends: dict[Frontend, Held | None] = field(default_factory=dict)
    """Every frontend that is touched -> what is to be held for it; None: nothing."""
    claims: dict[Frontend, frozenset[str]] = field(default_factory=dict)
    local: Counter[tuple[Family, bytes]] = field(default_factory=Counter)
    """Changes to the number of services that have the address as a local backend."""
    ports: set[tuple[Family, bytes]] = field(default_factory=set)
    """Ports of backends that no backend has been seen to listen on before."""


class Ledger:
    """Frontends in the kernel.

    Two services may claim the same frontend (an external IP, say). The one whose id sorts first gets it, whatever the
    order of events, so that every node decides alike; when it gives the frontend up, the next one gets it.
    """

    def __init__(self) -> None:
        self.held: dict[Frontend, Held] = {}
        self._claims: dict[Frontend, frozenset[str]] = {}
        self._local: Counter[tuple[Family, bytes]] = Counter()
        self.ports: set[tuple[Family, bytes]] = set()
        """Elements of `backend_ports`: all that were ever needed, see untracked.py."""

    def owner(self, frontend: Frontend) -> str:
        """The service that a frontend belongs to; "" for none."""
        return min(self._claims.get(frontend, ("",)))

    def transition(
        self, old: Mapping[str, Plan], new: Mapping[str, Plan], plan_of: Callable[[str], Plan]
    ) -> Transition:
        """What follows when services go from `old` to `new` plans; `plan_of` gives the plans of all other services."""
        leaving, joining = _by_frontend(old), _by_frontend(new)
        made = Transition()
        for frontend in leaving.keys() | joining.keys():
            claims = self._claims.get(frontend, frozenset()) - leaving.get(frontend, set())
            claims |= joining.get(frontend, set())
            made.claims[frontend] = claims
            if not claims:
                made.frontends[frontend] = None
                continue
            owner = min(claims)
            target = (new[owner] if owner in new else plan_of(owner)).frontends[frontend]
            before = self.held.get(frontend)
            made.frontends[frontend] = hold(target, before.slots if before else ())
        for plan in new.values():
            made.local.update(plan.local)
            made.ports |= plan.ports - self.ports
        for plan in old.values():
            made.local.subtract(plan.local)
        return made

    def edits(self, transition: Transition) -> Edits:
        """The element changes that bring the kernel from what is held to what the transition wants."""
        edits = Edits()
        for frontend, held in transition.frontends.items():
            edits.move(frontend, self.held.get(frontend), held)
        for family, key in transition.ports:
            edits.port(family, key)
        for (family, address), change in transition.local.items():
            before = self._local[family, address]
            if bool(before) != bool(before + change):
                edits.hairpin(family, address, present=not before)
        return edits

    def accept(self, transition: Transition) -> None:
        """The kernel holds the transition's outcome."""
        for frontend, held in transition.frontends.items():
            if held is None:
                self.held.pop(frontend, None)
            else:
                self.held[frontend] = held
        for frontend, claims in transition.claims.items():
            if claims:
                self._claims[frontend] = claims
            else:
                self._claims.pop(frontend, None)
        self.ports |= transition.ports
        self._local.update(transition.local)
        for key in [key for key in transition.local if not self._local[key]]:
            del self._local[key]

    def local_elements(self) -> Iterator[tuple[Place, bytes, Value]]:
        for family, address in self._local:
            yield (family, HAIRPIN), address + address, None


def _by_frontend(plans: Mapping[str, Plan]) -> dict[Frontend, set[str]]:
    found: dict[Frontend, set[str]] = {}
    for name, plan in plans.items():
        for frontend in plan.frontends:
            found.setdefault(frontend, set()).add(name)
    return found


def whole(plans: Mapping[str, Plan], kernel: Elements, ports: Iterable[tuple[Family, bytes]]) -> Ledger:
    """The ledger of a whole table, whose slots are those of the kernel's elements as far as possible.

    `ports`: those of backends that are known already.
    """
    claims: dict[Frontend, frozenset[str]] = {}
    targets: dict[Frontend, Target] = {}
    for name in sorted(plans):
        for frontend, target in plans[name].frontends.items():
            if frontend in claims:
                claims[frontend] |= {name}
            else:
                claims[frontend] = frozenset((name,))
                targets[frontend] = target
    made = Ledger()
    made._claims = claims
    made.held = {frontend: hold(target, kernel_slots(kernel, frontend)) for frontend, target in targets.items()}
    made.ports.update(ports)
    for plan in plans.values():
        made._local.update(plan.local)
        made.ports |= plan.ports
    return made


def kernel_slots(kernel: Elements, frontend: Frontend) -> list[bytes]:
    """The backends that a frontend has in the kernel, by slot, up to the first slot that is missing."""
    kind, key = frontend
    find = kernel.get((kind.family, kind.backends), _NOTHING).get
    found: list[bytes] = []
    for slot in slot_suffixes():
        data = find(key + slot)
        if not isinstance(data, bytes):
            break
        found.append(data)
    return found


def all_elements(ledger: Ledger) -> Elements:
    """Everything that the kernel is to hold, by set."""
    found: Elements = {}
    # One place's dictionary is looked up per frontend rather than per element: this is half of a cold start.
    for (kind, key), held in ledger.held.items():
        found.setdefault((kind.family, kind.frontends), {})[key] = held.number
        if kind.traffic:
            found.setdefault((kind.family, kind.traffic), {})[key] = None
        if held.slots:
            backends = found.setdefault((kind.family, kind.backends), {})
            for slot, data in enumerate(held.slots):
                backends[slot_key(key, slot)] = data
        if held.seconds or held.sources:
            for where, special, value in special_elements((kind, key), held):
                found.setdefault(where, {})[special] = value
    for where, key, value in ledger.local_elements():
        found.setdefault(where, {})[key] = value
    for family, key in ledger.ports:
        found.setdefault((family, BACKEND_PORTS), {})[key] = None
    return found

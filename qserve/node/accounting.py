"""What a node offers, what its replicas hold of it, and whether one more fits. Pure; it knows no process.

Amounts are counted in whole millionths, so that ten times 0.1 is 1 and three thirds are no more than 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

_PER_ONE = 1_000_000
# A binary fraction may lie below the decimal that was meant: 0.57 * 1,000,000 is 569999.9999999999.
_SLACK = 1e-3
# What stands in a record may be no amount at all (infinity, NaN): nothing offers that much.
_BEYOND_ALL = 10**30
_GPUS = "num_gpus"


def units(amount: float) -> int:
    """An amount in millionths, rounded down; what is more than nothing is at least one."""
    if not math.isfinite(amount):
        return _BEYOND_ALL
    whole, rest = divmod(amount, 1)
    return max(int(amount > 0), int(whole) * _PER_ONE + int(rest * _PER_ONE + _SLACK))


class Books:
    """What one node offers and who holds what. A replica holds its part until `release`, also while it leaves.

    offered  amounts by name; of `num_gpus` it is the devices that count
    gpus     ids of the devices that replicas may get
    """

    def __init__(self, offered: Mapping[str, float], gpus: Sequence[str] = ()) -> None:
        self.gpus = tuple(gpus)
        self._offered = {name: units(amount) for name, amount in offered.items() if name != _GPUS}
        self._held: dict[str, dict[str, int]] = {}
        self._devices: dict[str, dict[str, int]] = {}

    def why_not(self, needs: Mapping[str, float]) -> str:
        """What is missing for a replica that needs this, in words; empty when it fits."""
        return "; ".join(filter(None, (self._missing(name, amount) for name, amount in needs.items())))

    def take(self, replica_id: str, needs: Mapping[str, float]) -> tuple[str, ...]:
        """Give a replica its part. Returns its devices: whole ones, or the one that it shares.

        Raises ValueError when it does not fit, or holds something already.
        """
        if replica_id in self._held:
            raise ValueError(f"{replica_id} holds its part already.")
        if missing := self.why_not(needs):
            raise ValueError(missing)
        devices = self._choose(units(needs.get(_GPUS, 0)))
        self._held[replica_id] = {name: units(amount) for name, amount in needs.items() if name != _GPUS}
        self._devices[replica_id] = devices
        return tuple(devices)

    def release(self, replica_id: str) -> None:
        """A replica's process has ended. Safe to call twice."""
        self._held.pop(replica_id, None)
        self._devices.pop(replica_id, None)

    def _missing(self, name: str, amount: float) -> str:
        needed = units(amount)
        if name == _GPUS:
            return self._missing_gpus(needed)
        offered = self._offered.get(name, 0)
        free = offered - _sum_of(name, self._held.values())
        if needed <= free:
            return ""
        there = f"{_text(free)} of {_text(offered)} is free here" if offered else "this node offers none"
        return f"it needs {name}={_text(needed)}, and {there}"

    def _missing_gpus(self, needed: int) -> str:
        if len(self._choose(needed)) * _PER_ONE >= needed:
            return ""
        free = self._free()
        needs = f"it needs num_gpus={_text(needed)}, and"
        if not self.gpus:
            return f"{needs} this node offers none"
        if needed > _PER_ONE and needed % _PER_ONE:
            return f"{needs} a replica takes a share of one GPU, or whole ones"
        if needed < _PER_ONE:
            return f"{needs} no GPU has that much left: {_text(max(free.values()))} is the most"
        whole = sum(left == _PER_ONE for left in free.values())
        return f"{needs} {whole} of {len(free)} are wholly free"

    def _choose(self, needed: int) -> dict[str, int]:
        """Devices for so much, with what is taken of each; empty when there are none."""
        free = self._free()
        if needed < _PER_ONE:
            # The fullest that has room: shares must not spoil more devices than they need.
            fitting = [gpu for gpu, left in free.items() if left >= needed]
            return {min(fitting, key=free.__getitem__): needed} if needed and fitting else {}
        whole = [gpu for gpu, left in free.items() if left == _PER_ONE]
        count, share = divmod(needed, _PER_ONE)
        return dict.fromkeys(whole[:count], _PER_ONE) if not share and count <= len(whole) else {}

    def _free(self) -> dict[str, int]:
        """What is left of each device."""
        return {gpu: _PER_ONE - _sum_of(gpu, self._devices.values()) for gpu in self.gpus}


def _sum_of(name: str, parts: Iterable[Mapping[str, int]]) -> int:
    return sum(part.get(name, 0) for part in parts)


def _text(amount: int) -> str:
    whole, rest = divmod(amount, _PER_ONE)
    return f"{whole}" if not rest else f"{amount / _PER_ONE:g}"

"""Which versions are in memory, who needs them, and which one must go when another comes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from streamcl.serve.slots import Place
from streamcl.train.prompts import Pool

Label = tuple[int, str]
"""Number and digest of a version."""


@dataclass(eq=False)
class Held:
    """A version in memory. Mutable: who needs it."""

    label: Label
    slot: str | None
    """The slot that it occupies; None for the bare base, which needs none."""
    pool: Pool | None = None
    requests: int = 0
    """How many have begun with it, or are pinned to it, and are not answered yet."""
    used: int = 0
    """When it was last asked for, in turns."""

    @property
    def place(self) -> Place:
        """What a prompt goes through."""
        return self.pool or self.slot

    @property
    def lora(self) -> str | None:
        """The slot that the tokens after a prompt go through; none for a pool, which stands before the prompt."""
        return None if self.pool else self.slot

    @property
    def reserved(self) -> int:
        """Tokens of the context that stand before a request's own."""
        return self.pool.tokens if self.pool else 0


class Loaded:
    """The versions in memory: the bare base, and one a slot at most. Mutable, and for one thread at a time.

    A version goes only when its slot is wanted, it is not live and no request needs it; the one that was asked for
    longest ago goes first.
    """

    def __init__(self, base_digest: str, slots: tuple[str, ...]) -> None:
        self.live = Held((0, base_digest), None)
        self._held = [self.live]
        self._free = [*slots]
        self._turn = count(1)

    @property
    def labels(self) -> tuple[Label, ...]:
        """The live version first, then the others by number; without the bare base unless it is live."""
        rest = sorted(held.label for held in self._held if held is not self.live and held.slot)
        return (self.live.label, *rest)

    def find(self, number: int, digest: str | None = None) -> Held | None:
        """The version of that number (and digest), if it is in memory."""
        return next((one for one in self._held if one.label[0] == number and digest in (None, one.label[1])), None)

    def take(self, held: Held) -> Held:
        """One more request needs `held`."""
        held.requests += 1
        held.used = next(self._turn)
        return held

    def room(self) -> str | None:
        """A slot for another version, which the caller `put`s there or `free`s; None if all are needed."""
        if not self._free:
            idle = [held for held in self._held if held.slot and not held.requests and held is not self.live]
            if not idle:
                return None
            oldest = min(idle, key=lambda held: held.used)
            self._held.remove(oldest)
            assert oldest.slot is not None
            self._free.append(oldest.slot)
        return self._free.pop()

    def free(self, slot: str) -> None:
        self._free.append(slot)

    def put(self, held: Held) -> None:
        held.used = next(self._turn)
        self._held.insert(0, held)  # the newest of a number is the one that is found

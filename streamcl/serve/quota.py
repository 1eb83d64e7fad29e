"""How much the endpoint takes of producers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields

from streamcl.errors import ConfigError

BURST_S = 10.0
"""A producer that was silent may send so many seconds' worth at once."""


@dataclass(frozen=True)
class PushConfig:
    """What one replica takes of producers that post samples. Beyond it they are told when to come again."""

    samples_per_s: float = 1000.0
    """Samples a second of one producer, > 0."""
    bytes_per_s: int = 64 * 2**20
    """Bytes of bodies a second of one producer, > 0."""
    pending_bytes: int = 2**30
    """Bytes that may wait in the log until a commit of the learner holds them, > 0. Beyond, samples get 503."""
    body_bytes: int = 32 * 2**20
    """Length of one request's body, > 0. A longer one gets 413."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) <= 0:
                raise ConfigError(f"serve.push.{field.name} is {value}; it must be positive")


class Bucket:
    """A token bucket that may be overdrawn: who is in debt waits until it is paid. Mutable."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.level, self.at = rate, BURST_S * rate, now

    def take(self, amount: float, now: float) -> None:
        self.level = min(BURST_S * self.rate, self.level + self.rate * (now - self.at)) - amount
        self.at = now

    def wait_s(self, now: float) -> float:
        """Seconds until the debt is paid; 0 without one."""
        return max(0.0, -(self.level + self.rate * (now - self.at)) / self.rate)


class Quotas:
    """The buckets of all producers. Mutable; for any thread."""

    def __init__(self, config: PushConfig) -> None:
        self.config = config
        self._buckets: dict[str, tuple[Bucket, Bucket]] = {}
        self._lock = threading.Lock()

    def wait_s(self, producer: str, now: float) -> float:
        """Seconds that the producer must wait before it may send anything."""
        with self._lock:
            return max(bucket.wait_s(now) for bucket in self._of(producer, now))

    def take(self, producer: str, now: float, *, samples: int, size: int) -> None:
        """The producer has sent something."""
        with self._lock:
            for bucket, amount in zip(self._of(producer, now), (samples, size), strict=True):
                bucket.take(amount, now)

    def _of(self, producer: str, now: float) -> tuple[Bucket, Bucket]:
        fresh = Bucket(self.config.samples_per_s, now), Bucket(self.config.bytes_per_s, now)
        return self._buckets.setdefault(producer, fresh)

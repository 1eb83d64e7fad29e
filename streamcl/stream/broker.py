"""The way to Kafka's brokers: options for its client, and what the client's background threads complain about."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from streamcl.errors import ConfigError, SourceError
from streamcl.stream import secret

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError

START_S = 15.0
"""How long a start waits for an answer. Once a run reads, it waits for `patience_s`."""
TOPIC_S = 3.0
"""How long a topic may be missing at a start: a broker that has just begun does not know all of them."""
RETRY_S = 0.5
COMPLAINTS = 8


@dataclass(frozen=True)
class Tls:
    """Encryption of the connection to the brokers."""

    enabled: bool = False
    ca: str = ""
    """PEM file with the authorities that sign the brokers' certificates; empty: those of the system."""
    certificate: str = ""
    """PEM file with our own certificate, where brokers ask for one."""
    key: str = ""
    """PEM file with its private key."""
    key_password: str = ""
    """Where the key's password lies: env:NAME or file:PATH; empty if it has none."""

    def __post_init__(self) -> None:
        if self.key_password:
            secret.checked(self.key_password, "tls.key_password")
        if not self.enabled and any((self.ca, self.certificate, self.key)):
            raise ConfigError("tls names files but is off; set tls.enabled: true, or leave them out")

    def options(self) -> dict[str, Any]:
        files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        found = {f"ssl.{name}.location": path for name, path in files.items() if path}
        if self.key_password:
            found["ssl.key.password"] = secret.read(self.key_password, "tls.key_password")
        return found


@dataclass(frozen=True)
class Sasl:
    """Who we are to the brokers; without a user name nobody is asked."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = ""
    password: str = ""
    """Where the password lies: env:NAME or file:PATH."""

    def __post_init__(self) -> None:
        if self.username or self.password:
            secret.checked(self.password, "sasl.password")

    def options(self) -> dict[str, Any]:
        password = secret.read(self.password, "sasl.password")
        return {"sasl.mechanism": self.mechanism, "sasl.username": self.username, "sasl.password": password}


@dataclass(frozen=True)
class Brokers:
    """Where the brokers are and how they are spoken to. Made to be pickled: secrets are read when a client is made."""

    hosts: str
    tls: Tls = field(default_factory=Tls)
    sasl: Sasl = field(default_factory=Sasl)

    def options(self) -> dict[str, Any]:
        """What every client of librdkafka is given.  Raises ConfigError."""
        kind = ("SASL_" if self.sasl.username else "") + ("SSL" if self.tls.enabled else "PLAINTEXT")
        return {
            "bootstrap.servers": self.hosts,
            "security.protocol": kind,
            "client.id": "streamcl",
            "reconnect.backoff.max.ms": 2_000,
            "log_level": 0,  # what goes wrong is told by `Link`, once and with what to do
            **(self.tls.options() if self.tls.enabled else {}),
            **(self.sasl.options() if self.sasl.username else {}),
        }


class Link:
    """A consumer, and what is wrong with its connections.  Mutates: `complaints`."""

    def __init__(self, brokers: Brokers, options: Mapping[str, Any]) -> None:
        """Connects in the background.  Raises ConfigError: no client installed, an option that it refuses."""
        kafka = client_library()
        self.brokers = brokers
        self.complaints: deque[KafkaError] = deque(maxlen=COMPLAINTS)
        self.refused = kafka.KafkaException
        try:
            self.consumer: Consumer = kafka.Consumer(
                {**brokers.options(), **options, "error_cb": self.complaints.append}
            )
        except kafka.KafkaException as error:
            raise ConfigError(f"{brokers.hosts}: the client refuses its options: {_said(error.args[0])}") from error

    def topics(self, wanted: Sequence[str]) -> dict[str, list[int]]:
        """The partitions of each wanted topic.  Raises SourceError: no answer, not let in, a topic that is missing."""
        started = time.monotonic()
        known = self._listed(started)
        while missing := [topic for topic in wanted if topic not in known]:
            if time.monotonic() - started > TOPIC_S:
                raise SourceError(self._missing(missing[0], sorted(known)))
            time.sleep(RETRY_S)
            known = self._listed(started)
        return {topic: sorted(known[topic]) for topic in wanted}

    def close(self) -> None:
        """Leaves the brokers."""
        self.consumer.close()

    def _listed(self, started: float) -> dict[str, list[int]]:
        while True:
            try:
                found = self.consumer.list_topics(timeout=2.0).topics
                return {name: list(topic.partitions) for name, topic in found.items() if topic.error is None}
            except self.refused as error:
                self.consumer.poll(0)  # brings the complaints
                self.check()
                if time.monotonic() - started > START_S:
                    raise self.away(START_S, error.args[0]) from error
                time.sleep(RETRY_S)

    def check(self) -> None:
        """Raises SourceError if the brokers do not let us in: waiting does not mend that."""
        kafka = client_library().KafkaError
        shut = {kafka._AUTHENTICATION, kafka.SASL_AUTHENTICATION_FAILED, kafka._SSL, kafka.UNSUPPORTED_SASL_MECHANISM}
        for complaint in self.complaints:
            if complaint.code() in shut:
                raise SourceError(
                    f"{self.brokers.hosts} does not let us in: {_said(complaint)}. Check sasl.mechanism, "
                    "sasl.username, the secret that sasl.password names, and tls; the run's state is intact"
                )

    def away(self, seconds: float, error: KafkaError | None = None) -> SourceError:
        """What to raise when nobody has answered for so long."""
        told = next((one for one in reversed(self.complaints) if "brokers are down" not in one.str()), error)
        return SourceError(
            f"no broker of {self.brokers.hosts} has answered for {seconds:.0f} s ({_said(told)}). Check that it runs, "
            "source.brokers, tls and the network, then start again: the run's state is intact"
        )

    def _missing(self, topic: str, known: Sequence[str]) -> str:
        others = ", ".join(name for name in known if not name.startswith("__"))[:200]
        return (
            f"{self.brokers.hosts} has no topic {topic!r}, or does not show it to us; it has {others or 'none'}. "
            "Create it, grant the right to read it, or correct source.topics"
        )


def client_library() -> Any:
    """The module confluent_kafka, which is imported only where Kafka is used.  Raises ConfigError."""
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigError("Kafka needs the client confluent-kafka: pip install 'streamcl[kafka]'") from error
    return confluent_kafka


def _said(error: KafkaError | None) -> str:
    return error.str()[:200] if error is not None else "no reason was given"

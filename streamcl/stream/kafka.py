"""Samples from Kafka topics: a message is a sample, and where reading stands is in the run's log, not at the broker.

A partition is "topic/number"; its position is the offset of the next message, as Kafka's own tools count. Partitions
are assigned by us, never by a consumer group: nothing rebalances, and any process may read any partition from any
position. The group's offsets are written for lag tools only, after our commit made them durable; they are never read.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from streamcl.errors import BadSample, ConfigError, SourceError
from streamcl.stream.base import NO_ROWS, Polled, Source
from streamcl.stream.broker import Brokers, Link, Sasl, Tls, client_library
from streamcl.stream.deadletter import refuse
from streamcl.stream.door import Door
from streamcl.stream.formats import Row
from streamcl.stream.limits import Limits
from streamcl.stream.messages import is_image, record_of
from streamcl.stream.shapes import check_columns
from streamcl.types import DeadLetter, Sample, to_batch

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

POLL_BYTES = 32 * 2**20
"""A poll ends once it has gathered this much."""
AT_ONCE = 256
"""Messages taken from the client at a time."""
QUEUED_KB = 16 * 2**10
"""What the client reads ahead of a partition, KiB."""
SOON_S = 0.05
"""How long a poll waits for messages that may be on their way, if the one before it brought some."""
ASK_S = 0.3
"""How long a broker may take to say that it is there, once it was away."""
HINT_S = 5.0
"""How long the group's offsets may take to be written."""
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True)
class Kafka(Source):
    """Topics of a Kafka cluster. A message holds a sample: a JSON record, an Arrow IPC stream of one row, or an image.

    See `messages.py` for the three. A record without a time has its message's timestamp. A message without a value (a
    tombstone) is no sample; what cannot be decoded goes to the dead letters, with topic, partition and offset.
    """

    brokers: str
    """host:port, several separated by commas: where the client asks for the rest."""
    topics: tuple[str, ...]
    """Topics to read, all their partitions, also those that are added later."""
    tls: Tls = field(default_factory=Tls)
    sasl: Sasl = field(default_factory=Sasl)
    group: str = "streamcl"
    """Consumer group whose offsets tell lag tools how far the run's log goes."""
    patience_s: float = 600.0
    """How long brokers that do not answer are waited for before the run ends, its state intact; seconds."""
    idle_s: float = 2.0
    """How long a partition with nothing new may hold the others back, seconds."""
    lost: Literal["refuse", "skip"] = "refuse"
    """What to do where the broker has deleted messages that were not read yet: end with an error; or go on with the
    oldest that are left, with a dead letter that says what was lost."""
    limits: Limits = field(default_factory=Limits)
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of a record's fields, and the producers' own: {messages: chat, images: pictures, id: uid}."""
    name: str = "kafka"
    """Goes into each sample's `source`."""

    def __post_init__(self) -> None:
        check_columns(self.columns)
        if not self.topics or not all(map(TOPIC.fullmatch, self.topics)):
            raise ConfigError(f"topics {list(self.topics)}: name at least one, of A-Z a-z 0-9 . _ -")
        if not self.brokers or "/" in self.brokers:
            raise ConfigError(f"brokers {self.brokers!r}: write host:port, several separated by commas")
        if not self.group or self.patience_s < 0 or self.idle_s < 0:
            given = f"group {self.group!r}, patience_s {self.patience_s}, idle_s {self.idle_s}"
            raise ConfigError(f"{given}: the group is not empty, seconds are not below 0")

    def partitions(self) -> list[str]:
        """Every topic's partitions.  Raises SourceError, ConfigError."""
        with contextlib.closing(self.link()) as link:
            found = link.topics(self.topics)
        return [f"{topic}/{number}" for topic, numbers in found.items() for number in numbers]

    def open(self, partition: str, position: int) -> KafkaReader:
        """Reads a partition from an offset on; 0 is the oldest message there is.  Raises SourceError, ConfigError."""
        return KafkaReader(self, self.link(), partition, position)

    def committed(self, positions: Mapping[str, int]) -> None:
        """Writes the group's offsets, if the broker takes them within a few seconds."""
        if not positions:
            return
        kafka = client_library()
        from confluent_kafka.admin import AdminClient

        admin = AdminClient(self.connection.options())
        offsets = [kafka.TopicPartition(*split(name), position) for name, position in positions.items()]
        group = kafka.ConsumerGroupTopicPartitions(self.group, offsets)
        with contextlib.suppress(kafka.KafkaException):  # lag tools then see the next commit
            for future in admin.alter_consumer_group_offsets([group], request_timeout=HINT_S).values():
                future.result()

    @property
    def connection(self) -> Brokers:
        """The way to the brokers."""
        return Brokers(self.brokers, self.tls, self.sasl)

    def link(self) -> Link:
        """A new consumer, without a partition yet.  Raises ConfigError."""
        return Link(
            self.connection,
            {
                "group.id": self.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": QUEUED_KB,
                "fetch.queue.backoff.ms": 10,  # else reading pauses for a second whenever the queue was full
            },
        )


def split(partition: str) -> tuple[str, int]:
    """Topic and number of a partition."""
    topic, _, number = partition.rpartition("/")
    return topic, int(number)


class KafkaReader:
    """Reads one partition with a client of its own.  Mutates: `position`."""

    def __init__(
        self, source: Kafka, link: Link, partition: str, position: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.position = position
        self._source, self._link, self._partition, self._clock = source, link, partition, clock
        self._kafka = client_library()
        self._errors: list[KafkaError] = []
        self._flowing = True
        self._silent_since: float | None = None
        self._asked = 0.0
        self._assign(position)

    def poll(self, limit: int) -> Polled:
        """The next messages; empty if there is none now. An endless source never returns None.  Raises SourceError."""
        messages: list[Message] = []
        size = 0
        while len(messages) < limit and size < POLL_BYTES and not self._errors:
            got = self._link.consumer.consume(min(limit - len(messages), AT_ONCE), 0.0)
            if not got and not messages and self._flowing:
                got = self._link.consumer.consume(1, SOON_S)  # for more it would wait although some are there
            if not got:
                break
            self._errors += [message.error() for message in got if message.error() is not None]
            messages += [message for message in got if message.error() is None]
            size += sum(map(len, got))
        self._flowing = bool(messages)
        if not messages:
            return self._failed(self._errors.pop(0)) if self._errors else self._nothing()
        self._silent_since = None
        self._link.complaints.clear()
        polled = self.decoded(messages)
        self.position = messages[-1].offset() + 1
        return polled

    def decoded(self, messages: Sequence[Message]) -> Polled:
        """Messages as samples and dead letters."""
        good: list[Sample] = []
        dead: list[DeadLetter] = []
        for message in messages:
            if (value := message.value()) is None:
                continue
            taken = self._taken(message, value)
            (dead if isinstance(taken, DeadLetter) else good).append(taken)  # type: ignore[arg-type]
        return Polled(to_batch(good) if good else NO_ROWS, tuple(dead))

    def _taken(self, message: Message, value: bytes) -> Sample | DeadLetter:
        columns = {} if is_image(value) else self._source.columns
        door, offset = Door(self._source.name, self._source.limits, columns), message.offset()
        record: Mapping[str, Any] | BadSample
        try:
            record = record_of(value, dict(message.headers() or ()), self._source.limits)
            if record.get(time_name := columns.get("time", "time")) is None:
                record = {**record, time_name: max(0, message.timestamp()[1]) / 1000}
        except BadSample as error:
            record = error
        taken = door.take(Row(offset + 1, record, value), self._partition)
        return self._placed(taken) if isinstance(taken, DeadLetter) else taken

    def _placed(self, letter: DeadLetter) -> DeadLetter:
        """The letter with its place in the words of Kafka's tools."""
        topic, number = split(self._partition)
        place = f"topic {topic}, partition {number}, offset {letter.position - 1}"
        return replace(letter, reason=f"{letter.reason} ({place})")

    # -- when nothing comes --------------------------------------------------------------------------------------------

    def _assign(self, position: int) -> None:
        topic, number = split(self._partition)
        start = position or self._kafka.OFFSET_BEGINNING
        self._link.consumer.assign([self._kafka.TopicPartition(topic, number, start)])

    def watermarks(self, timeout: float) -> tuple[int, int] | None:
        """The oldest offset and the next one to be written, if the broker says them in time."""
        partition = self._kafka.TopicPartition(*split(self._partition))
        try:
            found: tuple[int, int] | None = self._link.consumer.get_watermark_offsets(partition, timeout=timeout)
        except self._kafka.KafkaException:
            return None
        return found

    def _nothing(self) -> Polled:
        """No message: there is none, or no broker answers, which is waited for."""
        self._link.check()
        now = self._clock()
        if not self._link.complaints:
            return Polled(NO_ROWS)
        self._silent_since = now if self._silent_since is None else self._silent_since
        if now - self._asked >= 1.0:
            self._asked = now
            if self.watermarks(ASK_S) is not None:
                self._silent_since = None
                self._link.complaints.clear()
                return Polled(NO_ROWS)
        silent = now - self._silent_since
        if silent > self._source.patience_s:
            raise self._link.away(silent)
        return Polled(NO_ROWS, waiting=f"the broker of {self._partition} has not answered for {silent:.0f} s")

    def _failed(self, error: KafkaError) -> Polled:
        """A message that is an error: what it means for this partition.  Raises SourceError."""
        kafka = self._kafka.KafkaError
        if error.code() in (kafka._AUTO_OFFSET_RESET, kafka.OFFSET_OUT_OF_RANGE, kafka._LOG_TRUNCATION):
            return self._gone(error)
        if error.code() in (kafka.TOPIC_AUTHORIZATION_FAILED, kafka._AUTHENTICATION, kafka._SSL):
            raise SourceError(
                f"{self._partition} may not be read: {error.str()}. Grant the right to; the run's state is intact"
            )
        self._link.complaints.append(error)  # a topic, leader or connection that is away may come back
        return self._nothing()

    def _gone(self, error: KafkaError) -> Polled:
        """The broker no longer has what follows our position, or not yet."""
        found = self.watermarks(HINT_S)
        if found is None:
            self._assign(self.position)
            self._link.complaints.append(error)
            return self._nothing()
        oldest, end = found
        where, unread = f"{self._partition}: reading stands at offset {self.position}", oldest - self.position
        if self.position > end or oldest <= self.position:
            raise SourceError(
                f"{where}, but the topic ends at {end}: it was deleted and made anew, or its brokers lost messages. "
                "Restore it; or read a topic of another name; or start a new run with another store"
            )
        if self._source.lost == "refuse":
            raise SourceError(
                f"{where}, but the broker has deleted everything before {oldest} (retention): {unread} messages were "
                "never read. Accept that with source.lost=skip, which notes it as a dead letter, or bring them back "
                "in a topic of another name and start a new run; and raise the topic's retention"
            )
        gap = f"offsets {self.position} to {oldest - 1} were deleted by the broker before they were read"
        letter = self._placed(DeadLetter(str(refuse("lost", gap)), "", self._source.name, self._partition, oldest))
        self._assign(oldest)
        self.position = oldest
        return Polled(NO_ROWS, (letter,))

"""What can go wrong and is the caller's to mend. Each message names what came, what is allowed, what to do."""

from __future__ import annotations


class StreamclError(Exception):
    """Base of every error that streamcl raises on purpose."""


class ConfigError(StreamclError, ValueError):
    """The configuration is wrong: unknown key, bad value, parts that do not fit."""


class BadName(StreamclError, ValueError):
    """A task, model or alias name with characters that are not allowed."""


class BadSample(StreamclError, ValueError):
    """A sample that cannot be taken in. `str(error)` is the dead letter's reason."""


class SourceError(StreamclError):
    """The source cannot be read: it vanished, changed under a committed position, or refuses us."""


class SinkError(StreamclError):
    """Samples cannot be written where they are to go."""


class StoreError(StreamclError):
    """The run's store broke a promise: unsafe for two writers, unreachable, or out of space."""


class Fenced(StoreError):
    """A newer learner owns this store: stop before any side effect."""


class Corrupt(StoreError):
    """An object does not match its digest, or cannot be parsed."""


class NoSuchVersion(StreamclError, LookupError):
    """A version or alias that the registry does not have."""


class NotFinite(StreamclError, ArithmeticError):
    """NaN or infinity in a loss, gradient, or adapter: the window is not published."""


class Refused(StreamclError):
    """An operator's request cannot be done as things stand."""


class Busy(StreamclError):
    """All places are taken for now; what was asked may be asked again."""

"""An answer's text as its tokens come: only what no later token can take back is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Text:
    """Tokens in, text out. Mutable.

    Half a character waits for its other half, and what may be the beginning of a stop string waits until it is clear
    whether it is one: a stop string is never shown, not in part either.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.shown = ""
        """The answer so far."""
        self.stopped = False
        """Whether a stop string has ended it."""
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._from = self._to = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Takes the next token, and returns what may be shown because of it."""
        self._ids.append(token)
        # decoded together with the tokens just before it, on which a leading space may depend
        before, after = self._decode(self._ids[self._from : self._to]), self._decode(self._ids[self._from :])
        if after.endswith("\ufffd"):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return self._show(after[len(before) :], last=False)

    def end(self) -> str:
        """No token follows: returns what was held back."""
        if self.stopped:
            return ""
        before, after = self._decode(self._ids[self._from : self._to]), self._decode(self._ids[self._from :])
        return self._show(after[len(before) :], last=True)

    def _show(self, piece: str, *, last: bool) -> str:
        self._held += piece
        cuts = [self._held.index(word) for word in self._stop if word in self._held]
        self.stopped = bool(cuts)
        keep = 0 if last else max((_begun(self._held, word) for word in self._stop), default=0)
        at = min(cuts) if cuts else len(self._held) - keep
        more, self._held = self._held[:at], self._held[at:]
        self.shown += more
        return more

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _begun(text: str, word: str) -> int:
    """How many of the last characters of `text` are the first of `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)

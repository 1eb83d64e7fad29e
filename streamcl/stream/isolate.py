"""Images are decoded in a child process: one that kills its decoder is a dead letter, not the end of the run.

The child lives on from image to image; a death is noticed at once, and says which image it was. It has an alarm and a
memory limit from the kernel, so it needs no watching: whatever happens, the parent reads an answer or an end of file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from streamcl.errors import BadSample
from streamcl.stream.deadletter import refuse
from streamcl.stream.images import prove
from streamcl.stream.limits import Limits

TRIES = 3
"""How often an image may kill its decoder before it is refused: the first death may have had another cause."""
SECONDS = 30
"""How long one image may take, by the wall clock. The largest that is allowed takes half a second of an idle core."""
MEMORY_BYTES = 2**30
"""What the child may allocate beyond what it starts with. The largest image that is allowed needs a fifth."""
TEST_HOOK = "STREAMCL_TEST_DECODER"
"""For tests only: an environment variable, "module:function", which the child calls and which may plant a decoder."""


class Isolated:
    """Decodes images in a child, which is started when first needed. Mutable: the child, and how often it died."""

    def __init__(self, *, seconds: int = SECONDS) -> None:
        self.seconds, self.deaths = seconds, 0
        self.child: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def prove(self, data: bytes | memoryview, where: str, limits: Limits) -> None:
        """`images.prove`, out of harm's way.  Raises BadSample, also for what kills the child TRIES times."""
        asked = {"size": len(data), "where": where, "limits": asdict(limits), "seconds": self.seconds}
        request = b"".join([json.dumps(asked).encode(), b"\n", data])
        for _ in range(TRIES):
            with self.lock:
                answer = self._ask(request)
                if answer:
                    break
                cause = self._buried()
        else:
            raise refuse("crash", f"{where} of {len(data)} bytes killed its decoder {TRIES} times: {cause}")
        if reason := json.loads(answer):
            raise BadSample(reason)

    def close(self) -> None:
        """Ends the child. A later `prove` starts another."""
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None

    def _ask(self, request: bytes) -> bytes:
        """The child's answer; empty if it died."""
        self.child = self.child or _started()
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.write(request)
                self.child.stdin.flush()
            return self.child.stdout.readline()
        except BaseException:  # interrupted: its answer would be taken for the next image's
            self.close()
            raise

    def _buried(self) -> str:
        """What the child died of."""
        assert self.child is not None
        self.child.communicate()
        code = self.child.returncode
        self.child, self.deaths = None, self.deaths + 1
        if code == -signal.SIGALRM:
            return f"it took more than {self.seconds} s"
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


CHILD = Isolated()
"""The child of this process."""


def _started() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def serve() -> None:
    """The child's life: a line and an image in, a line out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory()
    if hook := os.environ.get(TEST_HOOK):
        module, _, function = hook.partition(":")
        getattr(importlib.import_module(module), function)()
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := given.readline():
        asked = json.loads(line)
        data, reason = given.read(asked["size"]), None
        signal.alarm(asked["seconds"])
        try:
            prove(data, asked["where"], Limits(**asked["limits"]))
        except BadSample as error:
            reason = str(error)
        signal.alarm(0)
        answers.write(json.dumps(reason).encode() + b"\n")
        answers.flush()


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no /proc but on Linux: there the alarm must do
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

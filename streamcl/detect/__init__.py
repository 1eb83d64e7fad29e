"""When a new task begins, or an old one returns."""

from streamcl.detect.adwin import Adwin
from streamcl.detect.base import Boundary, Detector, DetectorKind, Observations
from streamcl.detect.labels import Labels, Never
from streamcl.detect.mmd import Mmd

KINDS: dict[str, type[DetectorKind]] = {"labels": Labels, "never": Never, "adwin": Adwin, "mmd": Mmd}

__all__ = ["KINDS", "Adwin", "Boundary", "Detector", "DetectorKind", "Labels", "Mmd", "Never", "Observations"]

"""When a new task begins, or an old one returns."""

from streamcl.detect.base import Boundary, Detector, DetectorKind, Observations
from streamcl.detect.labels import Labels, Never

KINDS: dict[str, type[DetectorKind]] = {"labels": Labels, "never": Never}

__all__ = ["KINDS", "Boundary", "Detector", "DetectorKind", "Labels", "Never", "Observations"]

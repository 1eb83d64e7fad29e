"""Detectors without statistics: `labels` and `never`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamcl.detect import Boundary, Detector, Labels, Never, Observations


def labelled(*labels: str | None) -> Observations:
    return Observations(np.zeros((len(labels), 0), np.float32), labels)


def boundaries(detector: Detector, seen: Observations) -> list[Boundary]:
    """All boundaries of `seen`, in its row numbers."""
    found, row = [], 0
    while row < len(seen):
        boundary = detector.update(seen.from_row(row))
        if boundary is None:
            break
        found.append(Boundary(boundary.at + row, boundary.starts + row, boundary.task))
        detector.begin(boundary.task or f"task-{len(found)}")
        row += boundary.at + 1
    return found


def test_a_boundary_is_exactly_where_the_label_changes():
    seen = labelled("a", "a", "b", "b", "b", "a")
    assert boundaries(Labels().build(), seen) == [Boundary(0, 0, "a"), Boundary(2, 2, "b"), Boundary(5, 5, "a")]


def test_an_unlabelled_sample_continues_the_task():
    seen = labelled("a", None, "a", None, "b", None)
    assert boundaries(Labels().build(), seen) == [Boundary(0, 0, "a"), Boundary(4, 4, "b")]


def test_a_stream_that_starts_without_labels_starts_with_an_unnamed_task():
    assert boundaries(Labels().build(), labelled(None, None, "a")) == [Boundary(0, 0, None), Boundary(2, 2, "a")]


def test_never_sees_one_task():
    assert boundaries(Never().build(), labelled("a", "b", None)) == [Boundary(0, 0, None)]


@pytest.mark.parametrize("kind", [Labels(), Never()])
def test_no_rows_no_boundary(kind):
    assert kind.build().update(labelled()) is None


@pytest.mark.parametrize("kind", [Labels(), Never()])
@pytest.mark.parametrize("cut", range(7))
def test_a_restored_detector_goes_on_as_if_nothing_had_happened(kind, cut):
    seen = labelled("a", None, "b", "b", "a", None, "c")
    first = kind.build()
    head = boundaries(first, Observations(seen.embeddings_ND[:cut], seen.labels[:cut]))
    second = kind.build()
    second.restore(json.loads(json.dumps(first.snapshot())))
    tail = [Boundary(b.at + cut, b.starts + cut, b.task) for b in boundaries(second, seen.from_row(cut))]
    assert head + tail == boundaries(kind.build(), seen)

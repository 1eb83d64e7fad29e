"""Claims of the `mmd` detector, on streams where the truth is known; broken twins show that the checks can fail."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist

import numpy as np
import pytest

from streamcl.detect import Boundary, Detector, Mmd, Observations
from streamcl.detect.evidence import CHANNELS, Evidence, _normal_scores
from streamcl.detect.mmd import BLOCK, MmdDetector
from streamcl.detect.reference import Reference
from streamcl.errors import ConfigError

SMALL = Mmd(frequencies=32, reference=256, false_alarm_every=2000, seed=3)


def rows(task: int, count: int, seed: int = 0, *, apart: float = 6.0) -> np.ndarray:
    """Samples of a task with four classes in 24 dimensions; its classes are its own, and `apart` from other tasks'."""
    centres = np.random.default_rng((1, task)).standard_normal((5, 24))
    random = np.random.default_rng((2, task, seed))
    own = centres[random.integers(4, size=count)] + apart * centres[4] / np.linalg.norm(centres[4])
    return (own + 0.7 * random.standard_normal((count, 24))).astype(np.float32)


def boundaries(detector: Detector, x_ND: np.ndarray, *, batch: int = 64, known: int = 0) -> list[Boundary]:
    found: list[Boundary] = []
    for first in range(0, len(x_ND), batch):
        seen, row = Observations(x_ND[first : first + batch], (None,) * len(x_ND[first : first + batch])), first
        while (b := detector.update(seen)) is not None:
            assert 0 <= b.at < len(seen)
            assert 0 <= b.at - b.starts <= detector.lag
            found.append(Boundary(row + b.at, row + b.starts, b.task))
            detector.begin(b.task or f"task-{known}")
            known += b.task is None
            row, seen = row + b.at + 1, seen.from_row(b.at + 1)
    return found


def stream(*parts: tuple[int, int]) -> np.ndarray:
    """(task, samples), one after another, no sample twice."""
    return np.concatenate([rows(task, count, seed) for seed, (task, count) in enumerate(parts)])


MIXED = stream((0, 500), (1, 400), (0, 300), (2, 450))


def alarms_on_null(kind: Mmd, *, streams: int = 12, length: int = 2000) -> int:
    """Alarms, each taken as a boundary, while nothing changes."""
    kind = replace(kind, second_look=False)
    return sum(len(boundaries(kind.build(), rows(0, length, 100 + s))) - 1 for s in range(streams))


def test_the_stream_begins_with_a_boundary_to_an_unnamed_task():
    assert boundaries(SMALL.build(), rows(0, 300)) == [Boundary(0, 0, None)]


def test_a_change_is_found_soon_and_placed_exactly_and_a_return_is_recognised():
    first, second, third, fourth = boundaries(SMALL.build(), MIXED)
    assert (first.starts, first.task) == (0, None)
    assert second.at - 500 < 20
    assert abs(second.starts - 500) <= 2
    assert second.task is None
    assert abs(third.starts - 900) <= 2
    assert third.task == "task-0"
    assert abs(fourth.starts - 1200) <= 2
    assert fourth.task is None


def test_alarms_come_at_the_stated_rate_while_nothing_changes():
    assert alarms_on_null(SMALL) <= 24  # 12 are wanted in 24,000 samples: above 24 once in 1,500 trials


@pytest.mark.parametrize("law", ["normal", "heavy", "skewed", "equal"])
def test_scores_are_normal_whatever_the_rows_look_like(law):
    random = np.random.default_rng(0)
    laws = {
        "normal": random.standard_normal,
        "heavy": lambda shape: random.standard_t(2, shape),
        "skewed": lambda shape: random.lognormal(0, 2, shape),
        "equal": np.zeros,
    }
    scores_BN = laws[law]((60_000, 65))
    z_B = _normal_scores(scores_BN[:, 0], scores_BN[:, 1:], random.random(60_000))
    naive_B = (scores_BN[:, 0] - scores_BN[:, 1:].mean(axis=1)) / (scores_BN[:, 1:].std(axis=1) + 1e-9)
    wrong = 0
    for level in (0.5, 0.1, 0.01, 0.001):
        at, error = NormalDist().inv_cdf(1 - level), 4 * (level / 60_000) ** 0.5
        assert abs((z_B > at).mean() - level) < error
        wrong += abs((naive_B > at).mean() - level) > error
    assert law == "normal" or wrong  # the broken twin: scores that are only standardised


def test_a_reference_learns_its_own_error_and_else_it_would_alarm():
    points_BF = np.random.default_rng(0).standard_normal((128, 8)).astype(np.float32)
    lean_BC = np.full((BLOCK, CHANNELS), 0.3)  # of every row: the points happen to lie oddly
    largest = []
    for learns in (True, False):
        reference = Reference(points_BF, points_BF, first_row=0, channels=CHANNELS)
        evidence = Evidence(16)
        largest.append(0.0)
        for _ in range(100):
            ratios_BCT = evidence.weigh(reference, lean_BC)
            evidence.ratio_CT = ratios_BCT[-1]
            largest[-1] = max(largest[-1], float(ratios_BCT.mean(axis=(1, 2)).max()))
            if learns:
                reference.learn(lean_BC)
    assert largest[0] < 100
    assert largest[1] > 1e6


def test_the_rate_is_the_thresholds_doing():
    @dataclass(frozen=True)
    class Uncalibrated(Mmd):
        """A broken twin: a threshold that somebody liked."""

        def build(self) -> MmdDetector:
            detector = super().build()
            detector.limit = 40.0
            return detector

    assert alarms_on_null(Uncalibrated(**asdict(SMALL))) > 24


def test_odd_samples_are_no_boundary():
    for seed in range(5):
        alone_ND, three_ND = rows(seed, 1600), rows(seed, 1600)
        alone_ND[800] = 50.0
        three_ND[[800, 900, 1000]] = 50.0
        assert boundaries(SMALL.build(), alone_ND) == [Boundary(0, 0, None)]
        assert boundaries(Mmd().build(), three_ND) == [Boundary(0, 0, None)]


def test_equal_samples_are_no_change_and_different_ones_are():
    x_ND = np.ones((800, 8), np.float32)
    assert boundaries(SMALL.build(), x_ND) == [Boundary(0, 0, None)]
    x_ND[500:] = 2
    assert [b.starts for b in boundaries(SMALL.build(), x_ND)] == [0, 500]


@pytest.mark.parametrize("unit", [0.0, 1e-6, 1e5])
def test_the_unit_of_the_embeddings_does_not_matter(unit):
    starts = [b.starts for b in boundaries(SMALL.build(), MIXED * np.float32(unit))]
    assert starts == ([0] if unit == 0 else [b.starts for b in boundaries(SMALL.build(), MIXED)])


@pytest.mark.parametrize("batch", [1, 7, 32, 1000])
def test_batching_changes_no_decision(batch):
    x_ND = MIXED[:700] if batch == 1 else MIXED
    assert boundaries(SMALL.build(), x_ND, batch=batch) == boundaries(SMALL.build(), x_ND)


@pytest.mark.parametrize("near", [1, 130, 500, 900, 1200])
def test_a_restored_detector_decides_as_the_one_that_was_written_down(near):
    whole = boundaries(SMALL.build(), MIXED)
    for cut in range(near, near + 40, 3):  # before, between alarm and boundary, and after
        first, second = SMALL.build(), SMALL.build()
        head = boundaries(first, MIXED[:cut])
        state = json.dumps(first.snapshot())
        second.restore(json.loads(state))
        assert json.dumps(second.snapshot()) == state
        tail = boundaries(second, MIXED[cut:], known=sum(b.task is None for b in head))
        assert head + [Boundary(b.at + cut, b.starts + cut, b.task) for b in tail] == whole


def test_a_snapshot_of_other_settings_is_refused():
    with pytest.raises(ConfigError, match="cannot go on"):
        replace(SMALL, seed=4).build().restore(SMALL.build().snapshot())


def test_state_does_not_grow_with_the_task():
    detector = replace(SMALL, false_alarm_every=10**9).build()
    sizes = []
    for seed in range(4):
        boundaries(detector, rows(0, 1024, seed))
        sizes.append(len(detector.snapshot()["recent_BF"]["base64"]) + len(json.dumps(detector.snapshot()["current"])))
    assert max(sizes[1:]) - min(sizes[1:]) < 20  # digits of counters, and nothing else


def test_a_gradual_change_is_one_boundary_inside_the_transition():
    random = np.random.default_rng(0)
    turned_N = random.random(1500) < np.clip((np.arange(1500) - 500) / 300, 0, 1)
    x_ND = np.where(turned_N[:, None], rows(1, 1500), rows(0, 1500))
    _, *found = boundaries(SMALL.build(), x_ND)
    assert len(found) == 1
    assert 500 <= found[0].starts <= 800


def test_producers_that_are_finely_mixed_are_one_task():
    for seed in range(3):
        mixed_N = np.random.default_rng(seed).random(1500) < 0.5
        x_ND = np.where(mixed_N[:, None], rows(1, 1500, seed), rows(0, 1500, seed))
        assert boundaries(replace(SMALL, false_alarm_every=20_000).build(), x_ND) == [Boundary(0, 0, None)]
    _, *found = boundaries(SMALL.build(), np.concatenate([rows(0, 600, 5), x_ND]))
    assert len(found) == 1
    assert abs(found[0].starts - 600) <= 16


def test_producers_in_turns_of_a_few_samples_are_one_task_until_one_stops():
    turns_N = np.arange(1500) // 4 % 2 == 1
    x_ND = np.where(turns_N[:, None], rows(1, 1500), rows(0, 1500))
    _, *found = boundaries(SMALL.build(), np.concatenate([x_ND, rows(1, 400, 5)]))
    assert len(found) == 1
    assert abs(found[0].starts - 1500) <= 16


def test_long_turns_of_two_producers_are_returns():
    turns = stream((0, 400), (1, 400), (0, 300), (1, 300), (0, 300))
    assert [b.task for b in boundaries(SMALL.build(), turns)] == [None, None, "task-0", "task-1", "task-0"]


@pytest.mark.parametrize(("shortest", "found"), [(256, [0, 400]), (128, [0, 400, 560])])
def test_a_new_task_that_is_shorter_than_the_shortest_is_one_with_the_next(shortest, found):
    x_ND = stream((0, 400), (1, 160), (2, 400))
    starts = [b.starts for b in boundaries(replace(SMALL, shortest=shortest).build(), x_ND)]
    assert len(starts) == len(found)
    assert all(abs(a - b) <= 4 for a, b in zip(starts, found, strict=True))


def test_a_similar_but_unseen_task_is_not_taken_for_a_known_one():
    x_ND = np.concatenate([rows(0, 500), rows(1, 400), rows(0, 400, 9) + np.float32(0.8)])
    assert [b.task for b in boundaries(SMALL.build(), x_ND)] == [None, None, None]


@pytest.mark.parametrize("wrong", [{"false_alarm_every": 100}, {"warm_up": 8}, {"confirm": 500}, {"reference": 64}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match="needs"):
        Mmd(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "streams"), [(1000, 120), (3000, 60)])
def test_the_realised_run_length_is_within_a_factor_of_the_wanted_one(wanted, streams):
    kind = Mmd(false_alarm_every=wanted, second_look=False)
    seen = alarms = 0
    for seed in range(streams):
        detector, x_ND = kind.build(), rows(0, 3 * wanted, 500 + seed)
        detector.update(Observations(x_ND[:1], (None,)))
        detector.begin("only")
        alarm = detector.update(Observations(x_ND[1:], (None,) * (len(x_ND) - 1)))
        seen += len(x_ND) if alarm is None else alarm.at + 2
        alarms += alarm is not None
    assert 1 / 1.5 <= seen / alarms / wanted <= 1.5


def test_a_stream_that_never_settles_loses_nothing_but_time():
    bursts = np.concatenate([rows(seed % 7, 37, seed) for seed in range(60)])  # alarms follow each other for 2,220 rows
    whole = boundaries(SMALL.build(), bursts)
    assert boundaries(SMALL.build(), bursts, batch=5) == whole

"""The boundary bench: false alarms and delays together, against other detectors.  `python -m streamcl.bench.boundaries`

Measured on the zoo's tasks that the detector's constant was not chosen on (`boundaries_calibrate.py`). Peers need river
(`pip install river`). (a) Gaussian rows in 64 dimensions whose mean moves by 0.5, 1 or 2 standard
deviations in one random direction, (b) the zoo's training samples, tasks in random orders and of random lengths, (c)
the same with returning tasks, and with gradual changes. A delay counts the new task's samples up to the alarm, the
alarming one included; a change that is missed counts as long as the new task, and an alarm before the change gives no
delay. Shapes: N rows, D features.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np

from streamcl.bench.boundaries_claims import (
    COMMAND,
    SHIFTS,
    WANTED,
    Row,
    claim_delay,
    claim_orders,
    claim_returns,
    claim_run_length,
    claim_speed,
)
from streamcl.bench.boundaries_peers import Peer, peers
from streamcl.bench.boundaries_plots import plot_curves
from streamcl.bench.boundaries_streams import (
    CALIBRATION,
    Change,
    Tasks,
    draw,
    embeddings,
    gaussian_changes,
    gaussian_nulls,
    gradual_stream,
    null_streams,
    order,
    real_changes,
)
from streamcl.bench.report import RESULTS, Claim, about, save
from streamcl.detect import Boundary, Detector, Mmd, Observations


@dataclass(frozen=True)
class Size:
    """How much of everything is measured."""

    orders: int
    nulls: int
    wanted: tuple[int, ...] = (1000, WANTED)
    peer_nulls: int = 20
    changes: int = 80
    shifts: int = 20


FULL = Size(orders=20, nulls=120)
QUICK = Size(orders=4, nulls=120, wanted=(1000,))
QUICK_LACKS = "left out: line 1 at 10,000 and line 3 (the peers); lines 2, 4 and 5 are from 4 orders instead of 20"


def boundaries(detector: Detector, x_ND: np.ndarray, *, batch: int = 64, known: int = 0) -> Iterator[Boundary]:
    """All boundaries in a stream without labels, in its row numbers; new tasks are named by number, from `known` on."""
    for first in range(0, len(x_ND), batch):
        seen, row = Observations(x_ND[first : first + batch], (None,) * len(x_ND[first : first + batch])), first
        while (found := detector.update(seen)) is not None:
            yield Boundary(row + found.at, row + found.starts, found.task)
            detector.begin(found.task or f"task-{known}")
            known += found.task is None
            row, seen = row + found.at + 1, seen.from_row(found.at + 1)


def first_alarm(kind: Mmd, x_ND: np.ndarray) -> int | None:
    """The row of the first boundary after the stream's own."""
    return next((found.at for found in boundaries(kind.build(), x_ND) if found.at > 0), None)


def run_lengths(alarm: Callable[[np.ndarray], int | None], streams: Iterable[np.ndarray]) -> np.ndarray:
    """Rows up to the first alarm, or all if there is none, and whether there is one: [S, 2]."""
    found = ((alarm(x_ND), len(x_ND)) for x_ND in streams)
    return np.array([(rows, 0) if at is None else (at + 1, 1) for at, rows in found])


def run_length(found_S2: np.ndarray) -> float:
    """Rows to an alarm: streams that end before one count as rows without."""
    rows, alarms = found_S2.sum(axis=0)
    return float(rows / max(alarms, 1))


def interval(found_S2: np.ndarray) -> tuple[float, float]:
    """Of the run length: 95 %, from 2,000 resamples of the streams."""
    drawn_RS = np.random.default_rng(0).integers(len(found_S2), size=(2000, len(found_S2)))
    low, high = np.quantile([run_length(found_S2[drawn_S]) for drawn_S in drawn_RS], (0.025, 0.975))
    return float(low), float(high)


def delays(alarm: Callable[[np.ndarray], int | None], changes: list[Change]) -> Row:
    """Delays of the first alarm, where it was not a false one."""
    found = [(alarm(change.x_ND), change) for change in changes]
    late = [len(c.x_ND) - c.start if at is None else at - c.start + 1 for at, c in found if at is None or at >= c.start]
    return {
        "delay_mean": float(np.mean(late)) if late else None,
        "delay_median": float(np.median(late)) if late else None,
        "missed": sum(at is None for at, _ in found),
        "early": len(found) - len(late),
        "changes": len(found),
    }


def measure_run_lengths(tasks: Tasks, size: Size) -> list[Row]:
    """Line 1: alarms of the calibrated test; and, with the default second look, boundaries."""
    cases = product(size.wanted, (False, True), (True, False))
    return [measure_run_length(tasks, size, *case) for case in cases]


def measure_run_length(tasks: Tasks, size: Size, wanted: int, second_look: bool, shuffled: bool) -> Row:
    count, length = (size.nulls // 8, max(4 * wanted, 30_000)) if second_look else (size.nulls, 4 * wanted)
    alarm = partial(first_alarm, Mmd(false_alarm_every=wanted, second_look=second_look))
    found_S2 = run_lengths(alarm, null_streams(tasks, count, length, shuffled=shuffled))
    low, high = interval(found_S2)
    row = {"part": "null", "wanted": wanted, "second_look": second_look, "shuffled": shuffled,
           "realised": run_length(found_S2), "low": low, "high": high, "streams": count,
           "rows": int(found_S2[:, 0].sum()), "alarms": int(found_S2[:, 1].sum()),
           "by_task": {name: run_length(found_S2[k :: len(tasks)]) for k, name in enumerate(tasks)}}  # fmt: skip
    print(row, flush=True)
    return row


def follow(kind: Mmd, parts: Sequence[tuple[str, np.ndarray]]) -> list[Row]:
    """One row for each boundary of a labelled stream that was found or missed, and for each false one."""
    starts = np.cumsum([0, *(len(x_ND) for _, x_ND in parts)])
    found = list(boundaries(kind.build(), np.concatenate([x_ND for _, x_ND in parts])))
    rows: list[Row] = []
    meant: dict[str, str] = {}  # what the detector's own names of tasks stand for
    for place, (name, _) in enumerate(parts):
        inside = [b for b in found if starts[place] <= b.at < starts[place + 1]]
        rows += [{"event": "false", "task": name} for _ in inside[1:]]
        if place:  # the stream's own beginning is no finding
            row: Row = {"event": "found" if inside else "missed", "task": name, "returns": name in meant.values()}
            for b in inside[:1]:
                row |= {"delay": int(b.at - starts[place] + 1), "off": int(b.starts - starts[place])}
                row["recognised_as"] = None if b.task is None else meant[b.task]
            rows.append(row)
        for b in inside:
            if b.task is None:
                meant[f"task-{len(meant)}"] = name
    return rows


def measure_orders(tasks: Tasks, size: Size, *, twice: bool) -> Row:
    """Lines 2 and 4: whole streams of these tasks, default settings."""
    rows = [
        row
        for seed in range(size.orders)
        for row in follow(Mmd(), order(tasks, np.random.default_rng((4 + twice, seed)), twice=twice))
    ]
    found = [row for row in rows if row["event"] == "found"]
    back, new = ([row for row in found if row["returns"] is returns] for returns in (True, False))
    return {
        "part": "returning" if twice else "orders", "orders": size.orders, "tasks": len(tasks), "found": len(found),
        "missed": sum(row["event"] == "missed" for row in rows), "false": sum(row["event"] == "false" for row in rows),
        "delay_median": float(np.median([row["delay"] for row in found])),
        "delay_95": float(np.quantile([row["delay"] for row in found], 0.95)),
        "located_16": float(np.mean([abs(row["off"]) <= 16 for row in found])),
        "recognised": float(np.mean([row["recognised_as"] == row["task"] for row in back])) if back else None,
        "mistaken": float(np.mean([row["recognised_as"] is not None for row in new])),
    }  # fmt: skip


def measure_gradual(tasks: Tasks, size: Size) -> Row:
    """(c), gradual: how many boundaries one transition makes, and how many of them begin inside it."""
    starts = []
    for seed in range(size.orders):
        random = np.random.default_rng((6, seed))
        (_, old_ND), (_, new_ND), *_ = order(tasks, random)
        found = boundaries(Mmd().build(), gradual_stream(old_ND, new_ND, random))
        starts.append([b.starts for b in found if b.at > 0])
    return {"part": "gradual", "streams": len(starts), "boundaries": sum(map(len, starts)),
            "one_boundary": float(np.mean([len(s) == 1 for s in starts])),
            "inside": float(np.mean([600 <= row <= 900 for s in starts for row in s]))}  # fmt: skip


def measure_short(tasks: Tasks, size: Size) -> Iterator[Row]:
    """Tasks of equal length, shorter and longer than `shortest`: how many boundaries to new and to known ones."""
    for length in (96, 128, 192, 256):
        rows = []
        for seed in range(size.orders):
            parts = order(tasks, np.random.default_rng((12, seed)), twice=True)
            rows += [row for row in follow(Mmd(), [(n, x_ND[:length]) for n, x_ND in parts]) if row["event"] != "false"]
        by = {w: [r["event"] == "found" for r in rows if r["returns"] is (w == "known")] for w in ("new", "known")}
        yield {"part": "short", "length": length, **{word: float(np.mean(found)) for word, found in by.items()}}


def measure_curves(nulls: list[np.ndarray], parts: Mapping[str, list[Change]]) -> Iterator[Row]:
    """Line 3: run length and delays at each threshold of ours, every alarm a boundary, and of the peers."""
    for peer in (Peer("mmd", (1000, 3000, WANTED, 20_000), ours), *peers()):
        for threshold in peer.thresholds:
            alarm = partial(peer.first_alarm, threshold)
            found_S2 = run_lengths(alarm, nulls)
            row = {"detector": peer.name, "threshold": threshold, "streams": len(nulls)}
            row |= {"arl0": run_length(found_S2), "alarms": int(found_S2[:, 1].sum())}
            for part, changes in parts.items():
                yield {"part": part, **row, **delays(alarm, changes)}
        print(peer.name, flush=True)


def measure_gaussian(size: Size) -> list[Row]:
    """(a): one set of streams without change for all shifts."""
    parts = {f"a {shift}": gaussian_changes(shift, size.shifts) for shift in SHIFTS}
    return list(measure_curves(gaussian_nulls(size.peer_nulls, 15_000), parts))


def ours(threshold: float, x_ND: np.ndarray) -> int | None:
    return first_alarm(replace(Mmd(), false_alarm_every=int(threshold), second_look=False), x_ND)


def measure_speed(tasks: Tasks, size: Size) -> Row:
    """Line 5: embeddings a second of processor time, the snapshot's size, and snapshots at random places."""
    x_ND = draw(next(iter(tasks.values())), 2048 * size.orders, np.random.default_rng(7))
    detector = Mmd(false_alarm_every=10**9).build()
    rates, sizes = [], []
    for chunk_ND in np.split(x_ND, size.orders):
        start = time.process_time()
        list(boundaries(detector, chunk_ND, batch=256))
        rates.append(len(chunk_ND) / (time.process_time() - start))
        sizes.append(len(json.dumps(detector.snapshot())))
    parts = order(tasks, np.random.default_rng(8), twice=True)
    stream_ND = np.concatenate([x_ND for _, x_ND in parts])
    last = Mmd().build()
    whole = list(boundaries(last, stream_ND))
    known = len(json.dumps(last.snapshot()["tasks"])) // len(last.tasks)
    cuts = np.random.default_rng(9).integers(1, len(stream_ND), size.orders)
    same = sum(_resumed(stream_ND, int(cut)) == whole for cut in cuts)
    return {"part": "speed", "per_second_median": float(np.median(rates)), "per_second_best": float(max(rates)),
            "snapshot_bytes": [sizes[1], sizes[-1]], "known_task_bytes": known,
            "cuts": len(cuts), "equal_after_cut": same}  # fmt: skip


def _resumed(x_ND: np.ndarray, cut: int) -> list[Boundary]:
    """The boundaries of a stream whose detector was written down and read back before row `cut`."""
    first, second = Mmd().build(), Mmd().build()
    head = list(boundaries(first, x_ND[:cut]))
    second.restore(json.loads(json.dumps(first.snapshot())))
    known = sum(b.task is None for b in head)
    return head + [Boundary(b.at + cut, b.starts + cut, b.task) for b in boundaries(second, x_ND[cut:], known=known)]


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="minutes; prints, but writes nothing")
    quick = parser.parse_args().quick
    size = QUICK if quick else FULL
    every = embeddings()
    tasks = {name: x_ND for name, x_ND in every.items() if name not in CALIBRATION}
    speed = measure_speed(tasks, size)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        nulls = pool.submit(measure_run_lengths, tasks, size)
        gaussian = None if quick else pool.submit(measure_gaussian, size)
        orders = [measure_orders(some, size, twice=False) for some in (tasks, every)]
        returns = [measure_orders(some, size, twice=True) for some in (tasks, every)]
        rows = [speed, *orders, *returns, measure_gradual(tasks, size), *measure_short(tasks, size)]
        print(*rows, sep="\n", flush=True)
        if not quick:
            rows += measure_curves(
                list(null_streams(tasks, size.peer_nulls, 15_000)), {"b": real_changes(tasks, size.changes)}
            )
        rows += nulls.result() + (gaussian.result() if gaussian else [])
    claims = [claim_run_length(rows), claim_orders(orders), *([] if quick else [claim_delay(rows)])]
    claims += [claim_returns(returns), claim_speed(speed)]
    for each in claims:
        print(f"{each.id} {'holds ' if each.holds else 'MISSED'} {each.what}: {each.value}  [{each.bar}]")
    if quick:
        print(QUICK_LACKS)
    else:
        write(rows, claims)


def write(rows: Sequence[Row], claims: Sequence[Claim]) -> None:
    save("boundaries", about(seeds=range(FULL.orders), packages=("numpy", "torch", "river")), rows=rows, claims=claims)
    parts = {"(b) the zoo's stream": "b", **{f"(a) Gaussian, {s} sd in 64 dimensions": f"a {s}" for s in SHIFTS}}
    plot_curves(
        {title: [row for row in rows if row["part"] == part] for title, part in parts.items()},
        RESULTS / "boundaries.png",
    )


if __name__ == "__main__":
    main()

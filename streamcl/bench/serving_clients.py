"""What clients do with the API: the README's examples, bodies made from the schema, and each key on each endpoint.

All of it are tests; this runs them from the repository and counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from streamcl.bench.report import Claim

COMMAND = "python -m streamcl.bench.serving clients"
TESTS = Path(__file__).parents[2] / "tests" / "serve"
EXAMPLES = ("test_the_openai_client_runs_the_readmes_example", "test_curl_runs_the_readmes_example")
SCHEMAS = (
    "test_no_request_that_the_schema_allows_breaks_the_server",
    "test_no_request_that_the_schema_allows_breaks_the_route",
)
KEYS = ("test_every_endpoint_asks_for_its_scope", "test_who_has_no_key_for_it_adds_nothing")


def clients() -> tuple[list[dict[str, Any]], list[Claim]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        wanted = " or ".join((*EXAMPLES, *SCHEMAS, *KEYS))
        command = [sys.executable, "-m", "pytest", "-q", str(TESTS), "-k", wanted, f"--junitxml={report}"]
        subprocess.run(command, check=False, capture_output=True)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        rows = [
            {
                "part": "clients",
                "test": case.get("name"),
                "passed": not len(case),
                "seconds": float(case.get("time", 0)),
            }
            for case in cases
        ]
    return rows, [
        _claim(rows, "7.1", "the openai client (streaming and not, with a picture) and curl run the README's examples "
               "as they stand against a real server", EXAMPLES),
        _claim(rows, "7.7", "schemathesis on the schemas of the chat API and of the push route finds no 5xx and no "
               "hang; every endpoint answers every kind of key (none, unknown, predict, push, admin) as it should",
               SCHEMAS + KEYS),
    ]  # fmt: skip


def _claim(rows: list[dict[str, Any]], id: str, what: str, tests: tuple[str, ...]) -> Claim:
    passed = [row["test"] for row in rows if row["passed"] and row["test"] in tests]
    missing = sorted(set(tests) - set(passed))
    said = f"{len(passed)} of {len(tests)} tests pass" + (f"; not: {', '.join(missing)}" if missing else "")
    return Claim(id, what, "all", said, not missing, COMMAND)

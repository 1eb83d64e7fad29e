"""A fresh process for scenarios that fork: pytest's own may have had Ray and threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

Apart = Callable[..., Any]


@pytest.fixture(scope="session")
def apart() -> Iterator[Apart]:
    """Calls a function in that process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result()

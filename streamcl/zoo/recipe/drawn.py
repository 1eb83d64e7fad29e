"""The mix drawn once into one file, so that a machine without the pictures' packages can train from it.

python -m streamcl.zoo.recipe.drawn --packages wheels/unzipped --out mix.parquet
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streamcl.zoo.recipe.mix import Example, examples


def write(path: Path, mix: Sequence[Example]) -> None:
    """The examples as one Parquet file with the columns image (PNG), question and answer."""
    columns = dict(zip(Example._fields, zip(*mix, strict=True), strict=True))
    pq.write_table(pa.table(columns), path, compression="zstd")


def read(path: Path) -> list[Example]:
    """What `write` wrote."""
    return [Example(**row) for row in pq.read_table(path).to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unzipped wheels")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    mix = examples(arguments.packages, seed=arguments.seed)
    write(arguments.out, mix)
    print(f"{len(mix)} examples, {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

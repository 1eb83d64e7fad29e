"""The order of the folders, read from the syntax tree: imports point one way, and files and functions stay small."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path

import pytest

import streamcl

ROOT = Path(streamcl.__file__).parent

LAYERS: list[set[str]] = [
    {"errors", "metrics"},
    {"types"},
    {"store"},
    {"detect", "stream"},
    {"strategies"},
    {"train"},
    {"registry", "serve"},
    {"events"},
    {"window", "succession"},
    {"controller"},
    {"sections"},
    {"config"},
    {"cluster"},
    {"learner", "report"},
    {"status", "inspection", "produce", "doctor", "lineage"},
    {"operate", "compare"},
    {"console", "journal"},
    {"run", "app"},
    {"cli"},
    {""},
]
"""A unit (a folder, or a file beside them; "" is streamcl itself) imports from earlier entries only."""
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
BELOW_ZOO = {unit for unit, rank in RANK.items() if rank < RANK["train"]}
ALLOWED: dict[str, set[str]] = {
    **{unit: {other for other in RANK if RANK[other] < rank} for unit, rank in RANK.items()},
    "zoo": BELOW_ZOO,
    "testing": {*RANK, "zoo"} - {"cluster"},
    "bench": {*RANK, "zoo", "testing"},
}
"""What each unit may import besides itself. zoo stands aside, under the learner; testing and bench sit on top."""
ALLOWED["learner"] |= {"zoo"}

MODEL_LIBRARIES = {"transformers", "peft"}
MODEL_PLACES = ("train/model.py", "detect/embed.py", "serve/", "zoo/", "bench/")
FILE_LINES, FUNCTION_LINES = 300, 40


@dataclass(frozen=True)
class Package:
    """The modules of a package and what each imports, wherever in the file the import stands."""

    root: Path

    @cached_property
    def modules(self) -> Mapping[str, Path]:
        """Files by dotted name under the root; "" is the root's own `__init__`."""
        found = {path.relative_to(self.root).with_suffix("").parts: path for path in sorted(self.root.rglob("*.py"))}
        return {".".join(part for part in parts if part != "__init__"): path for parts, path in found.items()}

    @cached_property
    def trees(self) -> Mapping[str, ast.Module]:
        return {name: ast.parse(path.read_text()) for name, path in self.modules.items()}

    @cached_property
    def imported(self) -> Mapping[str, set[str]]:
        """By module, the full dotted names that it imports."""
        return {name: {target for node in ast.walk(tree) for target in self._targets(name, node)}
                for name, tree in self.trees.items()}  # fmt: skip

    @cached_property
    def edges(self) -> Mapping[str, set[str]]:
        """By module, the modules of this package that it imports."""
        inside = f"{self.root.name}."
        return {
            name: {self._module(target.removeprefix(inside)) for target in targets if f"{target}.".startswith(inside)}
            for name, targets in self.imported.items()
        }

    def path(self, module: str) -> str:
        return self.modules[module].relative_to(self.root).as_posix()

    def _targets(self, module: str, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{self._origin(module, node)}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(value.value) for value in node.args[:1] if isinstance(value, ast.Constant))

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        folder = self.modules[module].parent.relative_to(self.root.parent).parts
        return ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])

    def _module(self, target: str) -> str:
        """The module that `target`, a module or a name in one, lies in."""
        while target and target not in self.modules:
            target = target.rpartition(".")[0]
        return "" if target == self.root.name else target


def unit(module: str) -> str:
    return module.partition(".")[0]


def wrong_ways(package: Package) -> list[str]:
    """Imports against the order."""
    return [
        f"{package.path(name)} imports {target or 'the package itself'}"
        for name, targets in package.edges.items()
        for target in sorted(targets)
        if unit(target) != unit(name) and unit(target) not in ALLOWED[unit(name)]
    ]


def misplaced(package: Package, libraries: set[str], places: tuple[str, ...]) -> list[str]:
    """Imports of `libraries` outside `places`, which are files or folders."""
    return [
        f"{package.path(name)} imports {target}"
        for name, targets in package.imported.items()
        for target in sorted(targets)
        if target.partition(".")[0] in libraries and not package.path(name).startswith(places)
    ]


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or in a circle."""

    def reachable(name: str) -> set[str]:
        seen: set[str] = set()
        ahead = [*edges[name]]
        while ahead:
            if (module := ahead.pop()) not in seen:
                seen.add(module)
                ahead += edges[module]
        return seen

    beyond = {name: reachable(name) for name in edges}
    groups = {frozenset(b for b in beyond[a] if a in beyond[b]) for a in edges if a in beyond[a]}
    return sorted(map(sorted, groups))


def too_long(package: Package) -> list[str]:
    """Files and functions beyond their limits."""
    files = {package.path(name): path.read_text().count("\n") for name, path in package.modules.items()}
    functions = {
        f"{package.path(name)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in package.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: lines for name, lines in files.items() if lines > FILE_LINES}
    long |= {name: lines for name, lines in functions.items() if lines > FUNCTION_LINES}
    return [f"{name} has {lines} lines" for name, lines in long.items()]


@pytest.fixture(scope="module")
def package() -> Package:
    return Package(ROOT)


def listed(offenders: list[str]) -> str:
    return "\n".join(["", *offenders])


def test_imports_point_one_way(package: Package) -> None:
    assert not (offenders := wrong_ways(package)), listed(offenders)


def test_only_the_cluster_imports_ray(package: Package) -> None:
    places = ("cluster/", "bench/scale_cluster.py", "bench/serving_controls.py")  # nodes to run on; a control
    assert not (offenders := misplaced(package, {"ray"}, places)), listed(offenders)


def test_few_places_import_transformers_or_peft(package: Package) -> None:
    assert not (offenders := misplaced(package, MODEL_LIBRARIES, MODEL_PLACES)), listed(offenders)


def test_no_modules_import_each_other(package: Package) -> None:
    assert not (offenders := [" <-> ".join(group) for group in cycles(package.edges)]), listed(offenders)


def test_files_and_functions_are_short(package: Package) -> None:
    assert not (offenders := too_long(package)), listed(offenders)


def test_every_unit_has_a_place_in_the_order(package: Package) -> None:
    assert {unit(name) for name in package.modules} <= set(ALLOWED)


def sections(cls: typing.Any) -> Iterator[type]:
    """The dataclasses under `cls`: its own fields', and those of every kind."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if isinstance(part, type) and is_dataclass(part):
                yield from sections(part)


def test_every_section_of_the_configuration_says_what_it_is() -> None:
    from streamcl.config import KINDS
    from streamcl.sections import Config, ModelConfig, ReplayConfig, WindowConfig

    kinds = [kind for known in KINDS.values() for kind in known.values()]
    found = {section for cls in (Config, *kinds) for section in sections(cls)}
    assert {ModelConfig, ReplayConfig, WindowConfig, *kinds} <= found
    silent = [cls.__qualname__ for cls in found if (cls.__doc__ or "").startswith(f"{cls.__name__}(")]
    assert not silent, listed(silent)


# -- the checker itself ------------------------------------------------------------------------------------------------

PLANTED = {
    "store": ("from __future__ import annotations\nfrom streamcl.train import loop", "store/a.py imports train.loop"),
    "under TYPE_CHECKING": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from streamcl.train.loop import TrainConfig",
        "store/a.py imports train.loop",
    ),
    "in a function": ("def f():\n    import streamcl.train.loop as loop", "store/a.py imports train.loop"),
    "relative": ("from ..train import loop", "store/a.py imports train.loop"),
    "the package": ("from streamcl import Learner", "store/a.py imports the package itself"),
    "by name": ("import importlib\nimportlib.import_module('streamcl.train.loop')", "store/a.py imports train.loop"),
}


def plant(folder: Path, **files: str) -> Package:
    """A package named streamcl with a few files, and one that may not be where it is."""
    for name, text in {"__init__": "", "errors": "", "store/__init__": "", "train/__init__": "", "train/loop": "",
                       "zoo/__init__": "", **files}.items():  # fmt: skip
        path = folder / "streamcl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package(folder / "streamcl")


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checker_finds_an_import_against_the_order(planted: str, tmp_path: Path) -> None:
    text, offence = PLANTED[planted]
    assert wrong_ways(plant(tmp_path, **{"store/a": text})) == [offence]


def test_the_checker_finds_zoo_where_it_may_not_be(tmp_path: Path) -> None:
    package = plant(tmp_path, **{"train/a": "from streamcl import zoo", "learner": "from streamcl import zoo",
                                 "zoo/a": "import streamcl.train.loop"})  # fmt: skip
    assert wrong_ways(package) == ["train/a.py imports zoo", "zoo/a.py imports train.loop"]


def test_the_checker_finds_libraries_circles_and_length(tmp_path: Path) -> None:
    long = "def f():\n" + "    x = 1\n" * FILE_LINES
    circle = {"store/a": "from streamcl.store import b", "store/b": "def f():\n    from streamcl.store.a import x"}
    package = plant(tmp_path, **circle, **{"learner": "import ray.train", "train/a": "from peft import x", "cli": long})
    assert misplaced(package, {"ray"}, ("cluster/",)) == ["learner.py imports ray.train"]
    assert misplaced(package, MODEL_LIBRARIES, MODEL_PLACES) == ["train/a.py imports peft.x"]
    assert cycles(package.edges) == [["store.a", "store.b"]]
    assert too_long(package) == ["cli.py has 301 lines", "cli.py: f has 301 lines"]


def test_a_package_in_order_passes(tmp_path: Path) -> None:
    package = plant(
        tmp_path, **{"train/a": "from streamcl.store import x\nfrom streamcl.errors import y\nimport raytrace"}
    )
    assert wrong_ways(package) + misplaced(package, {"ray"}, ("cluster/",)) + too_long(package) == []
    assert cycles(package.edges) == []

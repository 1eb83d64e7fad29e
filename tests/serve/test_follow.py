"""A replica's engine follows the registry: what is live, who is on trial, and what does not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tiny_llava import LORA, Files, ask

from streamcl.cluster.follow import ABSENT_S, RETRY_S, Follower
from streamcl.errors import NoSuchVersion
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import CANDIDATE, Registry
from streamcl.sections import ServeConfig
from streamcl.train.model import Base


class Scene:
    """A registry of versions 1 to 3, the first one live, and a follower of another reader of it. Mutable: the clock."""

    def __init__(self, folder: Path, base: Base, versions: Mapping[int, Files]) -> None:
        self.now, self.store, self.looks = 100.0, LocalStore(folder), 0
        log = Log(self.store)
        log.acquire("test")
        self.registry = Registry(log, "octo")
        for number in (1, 2, 3):
            self.publish(versions[number], number, base)
        self.registry.promote(1)
        reader = Registry(Log(self.store), "octo")
        self.follower = Follower(reader, base, LORA, ServeConfig(canary=0.999_999), clock=lambda: self.now)
        versions_of = reader.versions

        def counted() -> object:
            self.looks += 1
            return versions_of()

        reader.versions = counted  # type: ignore[assignment, method-assign]

    def publish(self, files: Files, window: int, base: Base) -> None:
        self.registry.publish(files, window=window, task="t", base_digest=base.digest, scores={})

    def follow(self) -> int:
        number = self.follower.follow()
        self.follower.admit()
        return number

    def answered_by(self) -> int:
        return self.follower.trial.submit(ask("hi", max_tokens=1)).result().version


@pytest.fixture
def scene(tmp_path: Path, fresh_base: Callable[[], Base], versions: Mapping[int, Files]) -> Iterator[Scene]:
    made = Scene(tmp_path, fresh_base(), versions)
    yield made
    made.follower.engine.close()


def test_a_candidate_answers_from_when_it_is_set_aside_until_it_is_live(scene: Scene) -> None:
    assert (scene.follow(), scene.answered_by()) == (1, 1)
    scene.registry.promote(2, CANDIDATE)
    assert (scene.follow(), scene.answered_by()) == (1, 2)
    scene.registry.promote(2)
    assert (scene.follow(), scene.answered_by()) == (2, 2)
    assert scene.follower.trial.number() is None


def test_a_trial_ends_when_the_live_version_moves_or_the_candidate_is_withdrawn(scene: Scene) -> None:
    scene.registry.promote(2, CANDIDATE)
    scene.registry.promote(3)
    assert (scene.follow(), scene.answered_by()) == (3, 3)
    scene.registry.promote(1, CANDIDATE)
    assert (scene.follow(), scene.answered_by()) == (3, 1)
    scene.registry.withdraw(CANDIDATE, "its source was purged")
    assert (scene.follow(), scene.answered_by()) == (3, 3)
    assert scene.registry.aliases().keys() == {"live"}
    withdrawal = next(record.n for record in scene.registry.log.back() if record.kind == "alias")
    scene.store.put(f"aliases/{CANDIDATE}.json", f'{{"n": {withdrawal}}}'.encode())
    assert scene.follow() == 3, "a forged pointer to a withdrawal names nobody"


def test_a_candidate_that_cannot_be_read_does_not_answer_until_it_can(scene: Scene) -> None:
    path = scene.store.root / scene.registry.get(2).path
    aside = path.with_name("aside")
    path.rename(aside)
    scene.registry.promote(2, CANDIDATE)
    assert (scene.follow(), scene.answered_by()) == (1, 1)
    aside.rename(path)
    assert (scene.follow(), scene.answered_by()) == (1, 1), "not tried again so soon"
    scene.now += RETRY_S
    assert (scene.follow(), scene.answered_by()) == (1, 2)


def test_a_number_that_does_not_exist_is_looked_for_once_in_a_while(
    scene: Scene, versions: Mapping[int, Files]
) -> None:
    scene.follow()
    before = scene.looks
    scene.now += 2 * ABSENT_S
    for _ in range(5):
        with pytest.raises(NoSuchVersion, match="no version 4; have 1-3"):
            scene.follower.engine.submit(ask("hi", version=4))
    assert scene.looks == before + 1
    scene.publish(versions[4], 4, scene.follower.engine._base)
    scene.now += 2 * ABSENT_S
    assert scene.follower.engine.submit(ask("hi", version=4)).result().version == 4


def test_going_back_and_forth_lists_the_versions_once(scene: Scene) -> None:
    assert [scene.follow()] == [1]
    for number in (2, 1, 3, 1):
        scene.registry.promote(number)
        assert scene.follow() == number
    assert scene.looks == 1

"""Keys: who may do what, and that a key is neither kept, nor shown, nor missing where others can reach the port."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from streamcl.errors import ConfigError
from streamcl.sections import ServeConfig
from streamcl.serve.errors import ApiError
from streamcl.serve.keys import SCOPES, Keys, KeysConfig

PUSH = hashlib.sha256(b"sk-push").hexdigest()
TEXT = f"""
# scopes        key
predict         sk-ask        # a client
push            sha256:{PUSH}
admin           sk-root
predict,push    sk-both
"""


def status(keys: Keys, authorization: str | None, scope: str) -> int:
    try:
        keys.check(authorization, scope)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("key", "may"),
    [
        (None, {}),
        ("", {}),
        ("Bearer", {}),
        ("Bearer sk-other", {}),
        (f"Bearer {PUSH}", {}),
        ("Basic sk-ask", {}),
        ("Bearer sk-ask", {"predict"}),
        ("bearer  sk-push", {"push"}),
        ("Bearer sk-both", {"predict", "push"}),
        ("Bearer sk-root", set(SCOPES)),
    ],
)
def test_a_key_opens_what_its_scopes_say(key: str | None, may: set[str]) -> None:
    keys = Keys.parse(TEXT, "here")
    for scope in SCOPES:
        assert status(keys, key, scope) == (200 if scope in may else 403 if may else 401)
        assert status(Keys(), key, scope) == 200


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(TEXT)
    monkeypatch.setenv("MY_KEYS", "predict sk-env; push sk-ask")
    keys = KeysConfig(file=str(tmp_path / "keys"), env="MY_KEYS").load()
    assert status(keys, "Bearer sk-env", "predict") == 200
    assert {status(keys, "Bearer sk-ask", scope) for scope in ("predict", "push")} == {200}
    assert KeysConfig().load() == Keys()


def test_a_key_is_not_shown() -> None:
    keys = Keys.parse(TEXT, "here")
    assert "sk-" not in repr(keys)
    assert PUSH not in repr(keys)
    with pytest.raises(ConfigError) as caught:
        Keys.parse("sk-secret", "here")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing", "sk-1", "ask sk-1", "predict sk-1 sk-2", "predict sha256:beef"])
def test_a_text_that_names_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="here"):
        Keys.parse(text, "here")


def test_places_without_keys_are_refused(tmp_path: Path) -> None:
    for config in (KeysConfig(file=str(tmp_path / "none")), KeysConfig(env="STREAMCL_NO_SUCH_VARIABLE")):
        with pytest.raises(ConfigError, match=r"serve\.keys"):
            config.load()


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "example.org"])
def test_no_host_is_open_to_others_without_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="no API keys are set"):
        ServeConfig(host=host)
    ServeConfig(host=host, keys=KeysConfig(env="KEYS"))
    ServeConfig(host=host, keys=KeysConfig(public=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_alone_needs_no_keys(host: str) -> None:
    ServeConfig(host=host)

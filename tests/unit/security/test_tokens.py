"""Tokens: hashed, expiring, shared between processes by their file."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from kernelet.core.security.tokens import JoinToken, TokenError, Tokens, fetch_pinned_ca
from kernelet.core.security.users import User


def test_a_token_stands_for_its_user_and_groups(tmp_path: Path) -> None:
    secret = Tokens(tmp_path).create("anna", ["team"])
    assert Tokens(tmp_path).authenticate(secret) == User("anna", ("team",))
    assert Tokens(tmp_path).authenticate(f"{secret}x") is None


def test_a_join_token_stands_for_its_secret(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    assert tokens.authenticate(str(JoinToken("0" * 64, tokens.create("joiner")))) == User("joiner")


def test_the_file_holds_no_secret_and_is_its_owners_alone(tmp_path: Path) -> None:
    secret = Tokens(tmp_path).create("anna")
    path = tmp_path / "tokens.json"
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(tmp_path)
    secret = tokens.create("anna", ttl=60)
    assert tokens.authenticate(secret)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert tokens.authenticate(secret) is None


def test_a_running_server_learns_of_tokens_made_and_revoked_elsewhere(tmp_path: Path) -> None:
    server, command = Tokens(tmp_path), Tokens(tmp_path)
    secret = command.create("anna")
    assert server.authenticate(secret) == User("anna")
    assert command.revoke(secret) is True
    assert server.authenticate(secret) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(TokenError, match=r"tokens\.json is damaged"):
        Tokens(tmp_path)


@pytest.mark.parametrize("text", ["", "K1", "K1abc::x", "K2" + "0" * 64 + "::x", "K1" + "0" * 64 + "::"])
def test_a_malformed_join_token_is_refused(text: str) -> None:
    with pytest.raises(TokenError, match="malformed"):
        JoinToken.parse(text)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(TokenError, match=r"127\.0\.0\.1:1/cacerts: .*refused"):
        fetch_pinned_ca("https://127.0.0.1:1", JoinToken("0" * 64, "x"))

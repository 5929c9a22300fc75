"""The file of Ray's token is its owner's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdt.cluster import token
from cdt.errors import InputError

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "token"
    path.write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


def test_it_is_where_ray_looks_for_it(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token.token_file() == file
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token.token_file() == tmp_path / ".ray" / "auth_token"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o666])
def test_it_is_taken_from_all_others(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert token.open_to_others()
    token.keep_private()
    assert not token.open_to_others()
    assert file.read_text() == "secret"


def test_a_private_one_and_none_at_all_stay_as_they_are(file: Path) -> None:
    file.chmod(0o400)
    token.keep_private()
    assert file.stat().st_mode & 0o777 == 0o400
    file.unlink()
    token.keep_private()
    assert not token.open_to_others()


def test_a_file_that_cannot_be_changed_is_refused_with_the_remedy(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    file.chmod(0o644)
    monkeypatch.setattr(Path, "chmod", refused)
    with pytest.raises(
        InputError, match=r"others can read Ray's token.*Operation not permitted\): chmod 600 "
    ) as caught:
        token.keep_private()
    assert "secret" not in str(caught.value)


def test_no_token_goes_out_where_tokens_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token.header() == ()

from __future__ import annotations

from pathlib import Path

import pytest

from cdt.data.urls import REMOTE, is_remote
from cdt.errors import InputError


@pytest.mark.parametrize("scheme", REMOTE)
def test_urls_are_elsewhere(scheme: str) -> None:
    assert is_remote(f"{scheme}host/shards")


@pytest.mark.parametrize("place", ["shards", "/data/shards", "./s3/shards", "C:shards", Path("shards")])
def test_directories_are_here(place: str | Path) -> None:
    assert not is_remote(place)


def test_other_urls_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match="ftp://host/x: unknown kind of URL; known are http://, https://, s3://"):
        is_remote("ftp://host/x")


def test_a_command_runs_only_where_that_is_allowed() -> None:
    with pytest.raises(InputError, match=r"pipe: would run a command; data\.allow_pipe: true"):
        is_remote("pipe:cat /data/{}")
    assert is_remote("pipe:cat /data/{}", allow_pipe=True)

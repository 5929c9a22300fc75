"""Manifests: what is damaged or hostile is told in a line, and nothing outside of the checkpoint is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cdt.checkpoints.manifest import lacking, read_manifest
from cdt.errors import InputError

ENTRY = {"bytes": 1, "sha256": "0" * 64}
FILES = dict.fromkeys(("state.json", "ema.safetensors", "weights.safetensors", "engine/part.pt"), ENTRY)
TREE: dict[str, Any] = {"format": 2, "step": 7, "files": FILES}


def write(folder: Path, text: str) -> Path:
    (folder / "manifest.json").write_text(text)
    return folder


def test_it_says_the_step_and_the_files(tmp_path: Path) -> None:
    found = read_manifest(write(tmp_path, json.dumps(TREE)))
    assert (found.step, found.files) == (7, FILES)
    (tmp_path / "state.json").write_text("x")
    (tmp_path / "ema.safetensors").mkdir()
    assert lacking(tmp_path, found) == ["ema.safetensors", "weights.safetensors", "engine/part.pt"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "5", "{", '"files"', "NaN", "[" * 100_000, '{"format": 2}', '{"format": true}'),
        '{"format": 2, "step": 7, "files": []}',
        f'{{"format": 2, "step": {"9" * 5000}, "files": {{}}}}',
        "\udcff",
    ],
)
def test_what_is_no_manifest_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"manifest\.json cannot be read") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "engine/../../x", "a\0b", "", ".", "..", "a//b", "engine/", ".hidden"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    tree = TREE | {"files": FILES | {name: ENTRY}}
    with pytest.raises(InputError, match="cannot be a file of a checkpoint"):
        read_manifest(write(tmp_path, json.dumps(tree)))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_every_checkpoint_has_is_listed(name: str, tmp_path: Path) -> None:
    tree = TREE | {"files": {other: entry for other, entry in FILES.items() if other != name}}
    with pytest.raises(InputError, match=f"it lists no {name.partition('/')[0]}"):
        read_manifest(write(tmp_path, json.dumps(tree)))


@pytest.mark.parametrize(
    "entry", [{}, None, ENTRY | {"bytes": -1}, ENTRY | {"sha256": "0"}, ENTRY | {"sha256": "G" * 64}]
)
def test_an_entry_has_a_size_and_a_digest(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"files\.ema\.safetensors"):
        read_manifest(write(tmp_path, json.dumps(TREE | {"files": FILES | {"ema.safetensors": entry}})))

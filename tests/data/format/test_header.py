"""Values of index.json that no index could have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign_shards import pure_shards

from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.errors import InputError


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "train/../../x.tar"])
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["splits"]["train"]["shards"][0]["name"] = name
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="lies outside the directory"):
        Index.load(tmp_path)


@pytest.mark.parametrize("base", ["file:///etc", "pipe:rm -rf x", "/etc", "ftp://h/x"])
def test_a_base_is_a_url_of_a_known_kind(tmp_path: Path, base: str) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(header | {"base": base}))
    with pytest.raises(InputError, match=r"its base .* is none of http://"):
        Index.load(tmp_path)


def test_an_index_of_brackets_is_one_line(tmp_path: Path) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    (tmp_path / "index.json").write_text("[" * 300_000)
    with pytest.raises(InputError, match=r"^[^\n]*is not a valid index[^\n]*$"):
        Index.load(tmp_path)


@pytest.mark.parametrize(("number", "value"), [("bytes", 10**30), ("bytes", -1), ("count", 2**70)])
def test_absurd_numbers_in_an_index_are_one_line(tmp_path: Path, number: str, value: int) -> None:
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["splits"]["train"]["shards"][0][number] = value
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"^[^\n]*is not a valid index: split train: [^\n]*$"):
        Index.load(tmp_path)


def test_a_class_that_no_later_writer_could_store(tmp_path: Path) -> None:
    """As earlier versions wrote it from a folder whose name is not UTF-8."""
    index_shards(pure_shards(tmp_path), tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["class_names"][0] = "caf\udce9"
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"is not a valid index: the class 'caf\\udce9' is not UTF-8"):
        Index.load(tmp_path)

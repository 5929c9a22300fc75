"""A reader finds the tests of a module by its name, or by a line in ``tests/README.md``."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MODULES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "cdt").rglob("*.py")) if path.name != "__init__.py"]
ELSEWHERE = {
    module: re.findall(r"`([^`]+)`", where)
    for module, where in re.findall(r"^\| `(cdt/[^`]+)` \| (.+) \|$", (TESTS / "README.md").read_text(), re.MULTILINE)
}
"""By module: the files that the table says."""


def own_test(module: str) -> Path:
    inside = Path(module).relative_to("cdt")
    return TESTS / inside.parent / f"test_{inside.name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_of_its_name_or_a_line_in_the_table(module: str) -> None:
    assert own_test(module).is_file() or module in ELSEWHERE, (
        f"write {own_test(module).relative_to(ROOT)}, or say in tests/README.md where {module} is tested"
    )


@pytest.mark.parametrize("module", ELSEWHERE)
def test_a_line_of_the_table_is_true(module: str) -> None:
    assert module in MODULES, f"tests/README.md: {module} is gone"
    assert not own_test(module).exists(), f"tests/README.md: {module} has tests of its name; drop the line"
    assert ELSEWHERE[module]
    missing = [name for name in ELSEWHERE[module] if not (ROOT / name).is_file()]
    assert not missing, f"tests/README.md: {module}: no such files: {missing}"


def test_each_name_of_a_test_file_exists_once() -> None:
    """Pytest imports test files by their bare names."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


PAGES = [
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), TESTS / "README.md"]
    if page.name not in ("CHANGELOG.md", "log.md")  # they tell of the past
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"\b(?:cdt|tests|tools|configs|launch|docs)/[\w/.-]+\.(?:py|md|yaml|sbatch|sh)\b", page.read_text()
    )
    examples = ("NAME.py", "cdt/constraints/max_increase.py")
    missing = [name for name in named if not name.endswith(examples) and not (ROOT / name).exists()]
    assert not missing, f"{page.relative_to(ROOT)} names files that do not exist: {missing}"

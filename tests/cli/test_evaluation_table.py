from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from cdt.cli.evaluation_table import evaluation_table
from cdt.evaluate.histogram import expected_total_variation, total_variation, wilson_interval
from cdt.evaluate.results import ConstraintState, Evaluation, NearCopies

FLOORS = (
    ConstraintState("more fours", (4,), 0.1, 0.113, 12.3, 12.42, 0.12, True),
    ConstraintState("more fives", (5,), 0.1, 0.12, 12.6, 12.25, -0.35, False),
)


def evaluation(counts: list[int], constraints: tuple[ConstraintState, ...] = (), copies: int = 0) -> Evaluation:
    total, K = sum(counts), len(counts)
    shares = np.array(counts) / total
    low, high = wilson_interval(counts, total)
    return Evaluation(
        samples=total,
        class_names=tuple(map(str, range(K))),
        class_counts=(100,) * K,
        shares=tuple(shares.tolist()),
        intervals=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        tv_uniform=total_variation(shares, [1 / K] * K),
        tv_floor=expected_total_variation([1 / K] * K, total),
        confident=0.79,
        frechet=35.2,
        judge_accuracy=0.991,
        judge_held_out=219,
        near_copies=(NearCopies(5, 17, counts[5], copies, 0.5, 0.9 if copies < 2 else 1e-4, 0.2, 0.3, 0.35),),
        constraints=constraints,
    )


WITHOUT = evaluation([270, 280, 270, 280, 20, 20, 270, 260, 250, 80])
WITH = evaluation([210, 200, 190, 200, 200, 140, 210, 200, 230, 220], FLOORS, copies=4)
BOTH = {"without\nconstraints": WITHOUT, "with\nconstraints": WITH}


def printed(evaluations: dict[str, Evaluation], width: int, color: bool = False) -> str:
    console = Console(width=width, force_terminal=color, color_system="standard" if color else None, no_color=not color)
    with console.capture() as capture:
        console.print(evaluation_table(evaluations, console))
    return capture.get()


def row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return line.replace(start, "", 1).split()


def without_padding(text: str) -> str:
    """Escape codes stand directly before what they colour."""
    return re.sub(r"(\x1b\[\d+m) +", r"\1", text)


def test_rows_say_what_was_measured() -> None:
    text = printed(BOTH, 80)
    assert row(text, "4 ") == ["10.0%", "10.0%", "✗", "1.0%", "✓", "10.0%", "0.113", "+0.12", "✓"]
    assert row(text, "5 ") == ["10.0%", "10.0%", "✗", "1.0%", "✗", "7.0%", "0.120", "-0.35", "✗"]
    assert row(text, "6 ") == ["10.0%", "-", "13.5%", "10.5%", "-", "-"]
    assert row(text, "total variation from uniform") == ["0.240", "0.035"]
    assert row(text, "expected of a uniform generator") == ["0.027", "0.027"]
    assert row(text, "near-copies of training images of 5") == ["0", "of", "20", "4", "of", "140"]
    assert "right on 99.1% of 219 held-out images" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 90, 100, 120])
def test_fits_the_terminal_with_intervals_where_there_is_room(width: int) -> None:
    text = printed(BOTH, width)
    assert max(map(len, text.splitlines())) <= width
    assert ("[ 8.8, 11.4]" in text) == (width >= 100)
    assert ("95% intervals" in text) == (width >= 100)
    classes = [line for line in text.splitlines() if line[2:4].strip() in WITH.class_names]
    assert len(classes) == 10  # nothing is wrapped


def test_single_run() -> None:
    text = printed({"generated": WITH}, 80)
    assert row(text, "4 ") == ["10.0%", "10.0%", "✓", "10.0%", "[", "8.8,", "11.4]", "0.113", "+0.12", "✓"]
    assert row(text, "Fréchet distance in the judge's features") == ["35.20"]


def test_constraints_on_groups_and_on_no_class_have_their_own_rows() -> None:
    group = ConstraintState("even [digits]", (0, 2, 4, 6, 8), 0.6, 0.0, 1.0, 2.0, 1.0, True)
    prior = ConstraintState("keep the old", (), None, 0.5, None, None, None, None)
    text = printed({"generated": replace(WITH, constraints=(*FLOORS, group, prior))}, 80)
    assert row(text, "even [digits]")[:4] == ["50.0%", "60.0%", "✗", "52.0%"]
    assert row(text, "keep the old") == ["-", "-", "-", "0.500", "not", "measured"]


def test_the_share_and_the_loss_have_verdicts_of_their_own() -> None:
    """Fours meet their floor and miss their threshold, fives the reverse; words below say what each mark means."""
    missed, met = replace(FLOORS[0], slack=-0.2, satisfied=False), replace(FLOORS[1], slack=0.1, satisfied=True)
    text = printed({"generated": replace(WITH, constraints=(missed, met))}, 80)
    assert row(text, "4 ")[2:4] == ["✓", "10.0%"]
    assert row(text, "4 ")[-2:] == ["-0.20", "✗"]
    assert row(text, "5 ")[2:4] == ["✗", "7.0%"]
    assert row(text, "5 ")[-2:] == ["+0.10", "✓"]
    words = " ".join(text.split())
    assert "Share of samples: ✓ meets the floor, ≈ below it but its 95% interval reaches it, ✗ below it." in words
    assert "Slack: ✓ the constraint's own statistic met its threshold at the last dual step, ✗ it did not." in words
    assert "can disagree" in words
    assert "Share of samples" not in printed({"generated": WITHOUT}, 80)


def test_colours_say_whether_floors_are_met() -> None:
    text = without_padding(printed(BOTH, 80, color=True))
    assert "\x1b[32m✓ 10.0%" in text  # met: green
    assert "\x1b[31m✗  1.0%" in text  # missed: red
    assert "\x1b[31m4 of 140" in text  # more near-copies than chance explains
    nearly = replace(WITH, constraints=(replace(FLOORS[1], min_frequency=0.08),))
    assert "\x1b[33m≈  7.0%" in without_padding(
        printed({"generated": nearly}, 80, color=True)
    )  # within its interval: yellow


def test_many_classes_are_summed_up() -> None:
    many = evaluation([1] * 60 + [50] * 40, (replace(FLOORS[0], classes=(3,)),))
    text = printed({"generated": many}, 100)
    assert row(text, "3 ")[1] == "10.0%"
    assert row(text, "70 other classes")[0] == "70.0%"
    assert len(text.splitlines()) < 50

"""Tables for the terminal: evaluations of a single run or of runs side by side, and what a classifier achieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cdt.evaluate.histogram import wilson_interval
from cdt.evaluate.results import ConstraintState, Divergence, Evaluation, NearCopies
from cdt.evaluate.thresholds import SUSPICIOUS
from cdt.judges import Classifier
from cdt.spelling import first_few

MAX_ROWS = 30
MET, NEARLY, MISSED = ("✓", "green"), ("≈", "yellow"), ("✗", "red")
UNBOUNDED = 10_000  # characters: wider than any table
NOTHING = Text("-", style="dim")


def evaluation_table(evaluations: Mapping[str, Evaluation], console: Console) -> Group:
    """The classes' table and, below it, the figures of each evaluation; ``evaluations`` by column heading.

    All must be of the same classes. Lambda and slack are those of the last evaluation. Two verdicts are marked: whether
    a measured share meets its floor, and whether the constraint's own statistic meets its threshold. They can differ,
    and a note below the table explains both. The intervals of the shares are left out if the console is too narrow.
    """
    *_, last = evaluations.values()
    table, brackets = _class_table(evaluations, intervals=True), "; brackets are 95% intervals"
    if console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum > console.width:
        table, brackets = _class_table(evaluations, intervals=False), ""
    judge = (
        f"Classes as judged by a classifier that is right on {last.judge_accuracy:.1%} of {last.judge_held_out:,} "
        f"held-out images{brackets}."
    )
    notes = "\n".join([*_verdicts(last.constraints), judge, *left_out_note(last.left_out)])
    return Group(table, _figures(evaluations), Padding(Text(notes, style="dim"), (0, 2, 1, 2)))


def left_out_note(left_out: Sequence[str]) -> list[str]:
    """What is said of classes or values that no judge can learn."""
    return [f"Left out, as there are fewer than 2 images of each: {first_few(left_out)}."] if left_out else []


def classifier_table(classifier: Classifier) -> Table:
    """Held-out accuracy of each label, the worst where there are too many for a table, and on average."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("label", overflow="fold")
    for heading in ("held out", "right", "accuracy"):
        table.add_column(heading, justify="right")
    recalls, counts, correct = classifier.recalls, classifier.held_out_count, classifier.held_out_correct
    shown = sorted(sorted(range(len(recalls)), key=lambda k: recalls[k])[:MAX_ROWS])
    for k in shown:
        table.add_row(Text(classifier.labels[k]), f"{counts[k]:,}", f"{correct[k]:,}", f"{recalls[k]:.1%}")
    if hidden := [k for k in range(len(recalls)) if k not in set(shown)]:
        n, right = sum(counts[k] for k in hidden), sum(correct[k] for k in hidden)
        mean = sum(recalls[k] for k in hidden) / len(hidden)
        table.add_row(f"{len(hidden)} others", f"{n:,}", f"{right:,}", f"{mean:.1%}")
    table.add_section()
    table.add_row("mean of labels", f"{sum(counts):,}", f"{sum(correct):,}", f"{classifier.accuracy:.1%}", style="bold")
    return table


def _class_table(evaluations: Mapping[str, Evaluation], intervals: bool) -> Table:
    *_, last = evaluations.values()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("class", overflow="fold")
    for heading in ("in data", "floor", *evaluations, "lambda", "slack (nats)"):
        table.add_column(heading, justify="right", vertical="bottom")

    by_class, others = _split(last.constraints)
    shown = _shown_classes(last, by_class)
    for c in shown:
        _add_row(table, last.class_names[c], (c,), by_class.get(c), evaluations, intervals)
    hidden = tuple(sorted(set(range(len(last.shares))) - set(shown)))
    if hidden:
        _add_row(table, f"{len(hidden)} other classes", hidden, None, evaluations, intervals)
    if others:
        table.add_section()
    for constraint in others:
        _add_row(table, constraint.name, constraint.classes, constraint, evaluations, intervals)
    return table


def _split(constraints: Sequence[ConstraintState]) -> tuple[dict[int, ConstraintState], list[ConstraintState]]:
    """Constraints that share their class's row, and those with a row of their own."""
    by_class: dict[int, ConstraintState] = {}
    others = []
    for constraint in constraints:
        if len(constraint.classes) == 1 and constraint.classes[0] not in by_class:
            by_class[constraint.classes[0]] = constraint
        else:
            others.append(constraint)
    return by_class, others


def _shown_classes(evaluation: Evaluation, by_class: Mapping[int, ConstraintState]) -> list[int]:
    """The constrained classes, then the most generated ones, as many as fit in a table; in the classes' order."""
    order = sorted(range(len(evaluation.shares)), key=lambda c: (c not in by_class, -evaluation.shares[c]))
    return sorted(order[:MAX_ROWS])


def _add_row(
    table: Table,
    label: str,
    classes: tuple[int, ...],
    constraint: ConstraintState | None,
    evaluations: Mapping[str, Evaluation],
    intervals: bool,
) -> None:
    *_, last = evaluations.values()
    floor = constraint.min_frequency if constraint else None
    in_data = sum(last.data_shares[c] for c in classes)
    table.add_row(
        Text(label, style="bold" if constraint else ""),
        Text(f"{in_data:.1%}") if classes else NOTHING,
        NOTHING if floor is None else Text(f"{floor:.1%}"),
        *(_share(evaluation, classes, floor, intervals) if classes else NOTHING for evaluation in evaluations.values()),
        Text(f"{constraint.lambda_:.3f}") if constraint else NOTHING,
        _slack(constraint) if constraint else NOTHING,
    )


def _share(evaluation: Evaluation, classes: tuple[int, ...], floor: float | None, intervals: bool) -> Text:
    """The share; if there is a floor, marked by whether it is met, only its interval reaches it, or it is missed."""
    share = sum(evaluation.shares[c] for c in classes)
    low, high = map(float, wilson_interval(share * evaluation.samples, evaluation.samples))
    text = Text(f"{share:.1%}")
    if floor is not None:
        mark, style = MET if share >= floor else NEARLY if high >= floor else MISSED
        text = Text(f"{mark} {share:>5.1%}", style=style)
    if intervals:
        text.append(f" [{100 * low:4.1f}, {100 * high:4.1f}]", style="dim default")
    return text


def _slack(constraint: ConstraintState) -> Text:
    if constraint.slack is None:
        return Text("not measured", style="dim")
    mark, style = MET if constraint.satisfied else MISSED
    unit = "" if constraint.unit == "nats" else f" {constraint.unit}"
    return Text(f"{constraint.slack:+.2f}{unit} {mark}", style=style)


def _verdicts(constraints: Sequence[ConstraintState]) -> list[str]:
    """What the marks in the table mean, a line for each verdict that is in it."""
    lines = []
    floors = any(constraint.min_frequency is not None for constraint in constraints)
    measured = any(constraint.slack is not None for constraint in constraints)
    if floors:
        lines.append(
            f"Share of samples: {MET[0]} meets the floor, {NEARLY[0]} below it but its 95% interval reaches it, "
            f"{MISSED[0]} below it."
        )
    if measured:
        lines.append(
            f"Slack: {MET[0]} the constraint's own statistic met its threshold at the last dual step, "
            f"{MISSED[0]} it did not."
        )
    if floors and measured:
        lines.append("The two are separate measurements and can disagree.")
    return lines


def _figures(evaluations: Mapping[str, Evaluation]) -> Table:
    *_, last = evaluations.values()
    measured = list(evaluations.values())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_header=len(measured) > 1, header_style="bold")
    table.add_column("")
    for heading in evaluations:
        table.add_column(heading, justify="right")

    def add(label: str, *values: str | Text, style: str = "") -> None:
        table.add_row(Text(label), *values, style=style)

    add("samples", *(f"{evaluation.samples:,}" for evaluation in measured))
    add("total variation from uniform", *(f"{evaluation.tv_uniform:.3f}" for evaluation in measured), style="bold")
    add("  expected of a uniform generator", *(f"{evaluation.tv_floor:.3f}" for evaluation in measured), style="dim")
    frechet = (NOTHING if evaluation.frechet is None else f"{evaluation.frechet:.2f}" for evaluation in measured)
    add("Fréchet distance in the judge's features", *frechet)
    add("samples the judge is sure of", *(f"{evaluation.confident:.1%}" for evaluation in measured))

    if any(evaluation.divergence for evaluation in measured):
        add("KL from the pretrained model, nats", *(_divergence(evaluation.divergence) for evaluation in measured))
        add("  budget", *(_budget(evaluation.divergence) for evaluation in measured), style="dim")

    classes = {c for constraint in last.constraints for c in constraint.classes}
    copies = [[n for n in evaluation.near_copies if not classes or n.label in classes] for evaluation in measured]
    if any(copies):
        names = ", ".join(last.class_names[n.label] for n in copies[-1])
        where = f" of {names}" if classes and len(names) < 20 else ""
        add(f"near-copies of training images{where}", *map(_copies, copies))
        expected = (f"{sum(n.expected for n in found):.1f}" for found in copies)
        add("  expected of as many unseen real images", *expected, style="dim")
    return table


def _divergence(found: Divergence | None) -> Text:
    """With its standard error; red where it is above the budget by more than twice that."""
    if found is None:
        return NOTHING
    above = found.budget is not None and found.nats > found.budget + 2 * found.standard_error
    return Text(f"{found.nats:.2f} ± {found.standard_error:.2f}", style="red" if above else "")


def _budget(found: Divergence | None) -> Text:
    return NOTHING if found is None or found.budget is None else Text(f"{found.budget:.2f}")


def _copies(found: Sequence[NearCopies]) -> Text:
    """``count of generated``; red when some class has more than chance explains."""
    suspicious = any(n.chance < SUSPICIOUS / len(found) for n in found)
    text = f"{sum(n.near_copies for n in found)} of {sum(n.generated for n in found):,}"
    return Text(text, style="red" if suspicious else "")

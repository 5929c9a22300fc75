"""Everything that can be refused before a run starts, once, on the driver: settings against each other and the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cdt.config import RunConfig
from cdt.constraints import Requirements
from cdt.data.format.index import Index
from cdt.data.format.joined import joined
from cdt.diffusion.processes import make_process
from cdt.dual import largest_feasible_scale, shares_exist
from cdt.errors import InputError, at
from cdt.judges import load_judge
from cdt.measure.generated import judged_columns
from cdt.measure.held_out import held_out_split
from cdt.measure.reference import open_reference
from cdt.networks.adapter import check_peft
from cdt.origin.pretrained import check_continued
from cdt.training.binding import Bound, bind
from cdt.training.calibrate import check_stable, drawn

BF16_WINDOW = 2.0
"""Log-SNR above which rounding to bf16 shows in losses: +.15 nats and more over the full range at 64 dimensions."""


def check(config: RunConfig) -> Bound:
    """The configuration bound to its data. Raises InputError for whatever does not fit together."""
    check_batch(config.train.batch_size, config.engine.accumulation)
    make_process(config.diffusion).check_sampler(config.sampler.name, config.sampler.steps)
    if not config.train.total_steps:
        raise InputError("train: warm_steps, dual_steps and cooldown_steps are 0; there is nothing to train")
    bound = bind(config)
    _check_origin(config, bound)
    _check_feasible(bound.requirements)
    check_stable(bound.requirements, config.dual)
    _check_outside(config, bound.requirements)
    _check_windows(config)
    _check_measurable(config, bound.index)
    if config.adapter is not None:
        check_peft()
    _ = bound.weights  # whether the network can be built for these images
    return bound


def check_batch(batch_size: int, accumulation: int) -> None:
    """Raises InputError unless all micro-batches are of one size."""
    if batch_size % accumulation:
        near = max(accumulation, round(batch_size / accumulation) * accumulation)
        raise InputError(
            f"train.batch_size: {batch_size} is not divisible by engine.accumulation ({accumulation}); "
            f"the nearest that is: {near}"
        )


def _check_origin(config: RunConfig, bound: Bound) -> None:
    """Whether the pretrained model and its samples fit the data."""
    index, origin, replay = bound.index, bound.origin, bound.replay
    if origin is None:
        return
    origin.check_images(index.shape, index.dtype)
    check_continued(origin, config.resolved_network, config.diffusion)
    if replay is not None:
        with at("replay" if config.replay.shards == "auto" else "replay.shards"):
            replay.check()
            if not replay.missing:
                joined(index, replay.index())


def _check_outside(config: RunConfig, requirements: Requirements) -> None:
    """Constraints on samples that lie outside of the objective's, and multipliers that draw no samples."""
    columns = zip(requirements.constraints.items(), requirements.shares, drawn(requirements), strict=True)
    for (name, constraint), share, draws in columns:
        if not draws and config.dual.rule == "mass":
            raise InputError(f"dual.rule: mass moves shares of the mixture, and {name} has none there: set auto")
        if share or not draws:
            continue
        if config.data.estimator == "reweight":
            raise InputError(
                f"data.estimator: reweight weighs samples of the objective, and those of {name} are not among them: "
                "set resample"
            )
        if constraint.share is not None and constraint.warm_share is None:
            raise InputError(
                f"constraints.{name}.{constraint.budget}: it needs the pretrained model's own share of this class: add "
                "`classifier: FILE`, or state generated_frequency, max_kl or max_loss"
            )
        if constraint.share is not None and config.dual.start != "closed_form":
            raise InputError(
                f"dual.start: the mass rule cannot lift the multiplier of {name} from 0, whose samples are not among "
                "the objective's: set closed_form"
            )
    if config.dual.estimate == "training":
        regressed = "distance" if config.replay.target == "teacher" else "loss"
        for name, constraint in requirements.constraints.items():
            if constraint.samples.replayed and constraint.statistic.name != regressed:
                raise InputError(
                    f"dual.estimate: training sees what is regressed onto replay.target {config.replay.target}, "
                    f"which is not the {constraint.statistic.name} that constraints.{name} asks for: set probe"
                )


def _check_measurable(config: RunConfig, index: Index) -> None:
    """Classifiers that know the classes, references that can be compared with, a split to probe."""
    process = make_process(config.diffusion)
    for name, constraint in config.constraints.items():
        with at(f"constraints.{name}"):
            share = constraint.warm_share
            judge = None if share is None else load_judge(share.judge, index.shape)
            if isinstance(constraint.compared_with, Path):
                open_reference(constraint.compared_with, process)
        if share is not None and judge is not None:
            judged_columns(judge, name, share)
    held_out_split(config.probe, index)
    unseen = [name for name, constraint in config.constraints.items() if constraint.statistic.of_generated]
    if config.dual.estimate == "training" and unseen:
        raise InputError(f"dual.estimate: training cannot measure generated samples ({', '.join(unseen)}): set probe")


def _check_feasible(requirements: Requirements) -> None:
    """Floors on shares that no distribution can meet together."""
    floors = {i: each.share for i, each in enumerate(requirements.constraints.values()) if each.share is not None}
    if not floors:
        return
    position = {i: place for place, i in enumerate(floors)}
    pairs = [
        (k, position[i])
        for k, i in zip(requirements.member_cells.tolist(), requirements.member_constraints.tolist(), strict=True)
        if i in position
    ]
    cells, members = np.array(pairs).T
    shares, K = np.array(list(floors.values())), len(requirements.cell_shares)
    names = ", ".join(requirements.names[i] for i in floors)
    scale = largest_feasible_scale(shares, cells, members, K)
    if scale < 1 - 1e-9:
        raise InputError(
            f"constraints: the floors of {names} sum to {shares.sum():.4g} and cannot be met together; multiplied by "
            f"{scale:.4g} they could"
        )
    equal = np.array([constraint.equal for constraint in requirements.constraints.values()])[list(floors)]
    if not shares_exist(shares, equal, cells, members, K):
        asked = [
            f"{requirements.names[i]} {'exactly' if exact else 'at least'} {share:g}"
            for i, share, exact in zip(floors, shares, equal, strict=True)
        ]
        raise InputError(f"constraints: no distribution has all of these shares: {', '.join(asked)}")


def _check_windows(config: RunConfig) -> None:
    """Windows that end inside the log-SNR range; one for all where the training estimate sums losses by cell."""
    process = make_process(config.diffusion)
    for name, constraint in config.constraints.items():
        window = constraint.window
        if isinstance(window, float) and not process.logsnr_min < window <= process.logsnr_max:
            raise InputError(
                f"constraints.{name}.window: {window:g} is not within the log-SNR range of the noise schedule: above "
                f"{process.logsnr_min:.4g}, at most {process.logsnr_max:.4g}"
            )
    windows = {constraint.window for constraint in config.constraints.values()}
    if config.dual.estimate == "training" and (len(windows) > 1 or "auto" in windows):
        found = ", ".join(sorted("null" if window is None else str(window) for window in windows))
        raise InputError(
            "dual.estimate: training needs one window for all constraints, a number or null; "
            f"found {found}: set constraints.NAME.window, or estimate: probe"
        )
    if config.dual.estimate == "training" and config.engine.precision == "bf16":
        high = max((process.logsnr_max if window is None else float(window) for window in windows), default=-np.inf)
        if high > BF16_WINDOW:
            raise InputError(
                "dual.estimate: training in bf16 cannot be held against thresholds that were measured in fp32 above a "
                f"log-SNR of {BF16_WINDOW:g}; the windows end at {high:.4g}: set estimate: probe, or a window up to "
                "there"
            )

"""Fine-tuning runs: from a run and from a pipeline, either side as the constraint; what is written, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny_runs import sealed_again

import cdt
from cdt.checkpoints.checkpoint import network_weights, read_weights
from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.errors import InputError
from cdt.origin import replay
from cdt.origin.resolve import resolve
from cdt.runs.dryrun import describe_plan
from cdt.runs.evaluation import classifier_of, divergence_from_origin
from cdt.runs.run import Run
from cdt.runs.start import check, resume, train

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
OLD: dict[str, Any] = {"old": {"prior": {"max_kl": 0.5}, "window": 0.5}}
SECTIONS: dict[str, Any] = {
    "constraints": OLD,
    "train": {"warm_steps": 0},
    "replay": {"samples": 24, "sampler": {"steps": 2}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of old and of new digits, a run on the old ones, and one that fine-tuned it on the new."""
    home = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDT_CACHE", str(home / "cache"))
        patch.setattr(replay, "FRESH_SAMPLES", 12)
        tiny.write_shards(home / "old")
        shard(SOURCES["digits"](), home / "new", only=["8", "9"], shard_mb=1)
        train(tiny.config(home / "old", home / "pretrained", constraints={}))
        train(tiny.config(home / "new", home / "tuned", home / "pretrained", **SECTIONS))
    return home


@pytest.fixture
def other(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """A configuration like that of ``tuned``, with the same cache."""
    monkeypatch.setenv("CDT_CACHE", str(home / "cache"))
    monkeypatch.setattr(replay, "FRESH_SAMPLES", 12)

    def config(init: Path = home / "pretrained", **sections: Any) -> RunConfig:
        merged = {name: SECTIONS.get(name, {}) | sections.get(name, {}) for name in SECTIONS.keys() | sections.keys()}
        merged["constraints"] = sections.get("constraints", OLD)
        return tiny.config(home / "new", tmp_path / "runs" / "other", init=init, **merged)

    return config


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows(run, "events.jsonl") if row["event"] == kind]


def same_weights(one: Path, another: Path) -> bool:
    a, b = (read_weights(Run(run).checkpoint) for run in (one, another))
    return all(torch.equal(a[name], b[name]) for name in a | b)


def test_what_a_fine_tuning_run_leaves(home: Path) -> None:
    run = home / "tuned"
    calibrated, *_ = events(run, "calibrated")
    assert calibrated["warm_loss"] == pytest.approx(0, abs=1e-9)  # the first weights are the pretrained ones
    assert calibrated["threshold"] == 0.5
    assert calibrated["text"].endswith("up to log-SNR 0.5, threshold 0.500")
    first, last = rows(run, "dual.jsonl")
    assert first["count"] == 8
    assert 0 < first["loss"] < last["loss"] + 1
    drawn = events(run, "data")[0]["streams"]
    assert drawn["constraint old"]["arrived"] == pytest.approx(32 * np.exp(-0.5), abs=2)  # begins at the closed form
    assert all(row["teacher_s"] > 0 for row in rows(run, "metrics.jsonl"))
    opened = cdt.load(run)
    assert opened.config.network == cdt.load(home / "pretrained").config.network
    assert opened.data["replay"]["samples"] == 24
    assert "fine-tuned from" in (run / "README.md").read_text()


def test_replay_is_drawn_once_for_all_runs(home: Path, other: Callable[..., RunConfig]) -> None:
    reports: list[dict[str, Any]] = []
    train(other(constraints={"old": {"prior": {"max_kl": 0.2, "statistic": "loss"}, "window": None}}), reports.append)
    assert "replay" not in {report["phase"] for report in reports}
    assert len(list((home / "cache" / "replay").iterdir())) == 1


def test_replay_that_is_gone_is_drawn_again_and_the_run_goes_on(home: Path, other: Callable[..., RunConfig]) -> None:
    config = other(train={"warm_steps": 0, "dual_steps": 2})
    train(config)
    shutil.rmtree(home / "cache" / "replay")
    reports: list[dict[str, Any]] = []
    resume(config.directory, ["train.dual_steps=4"], reports.append)
    assert reports[0]["phase"] == "replay"
    assert same_weights(config.directory, home / "tuned")
    assert rows(config.directory, "dual.jsonl") == rows(home / "tuned", "dual.jsonl")


def test_it_goes_on_with_the_checkpoint_that_it_began_with(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Though the pretrained run has gone on; not when that checkpoint is gone, or is another."""
    origin = Path(shutil.copytree(home / "pretrained", tmp_path / "pretrained"))
    config = other(init=origin, train={"warm_steps": 0, "dual_steps": 2})
    train(config)
    first, later = (origin / "checkpoints" / f"step-00000000{step}" for step in (8, 9))
    assert Run(config.directory).config.init == first
    shutil.copytree(origin / "checkpoints" / "step-000000004", later)
    resume(config.directory, ["train.dual_steps=4"])
    assert same_weights(config.directory, home / "tuned")
    assert rows(config.directory, "dual.jsonl") == rows(home / "tuned", "dual.jsonl")
    shutil.rmtree(first)
    with pytest.raises(InputError, match=rf"init: no such directory: {first}"):
        resume(config.directory, ["train.dual_steps=6"])
    shutil.copytree(home / "pretrained" / "checkpoints" / first.name, first)
    shutil.copy(later / "ema.safetensors", first)
    sealed_again(first)
    with pytest.raises(InputError, match=rf"init: {first} is not what the run began with, .* have changed since"):
        resume(config.directory, ["train.dual_steps=6"])


def test_the_budget_may_change_when_a_run_is_resumed(other: Callable[..., RunConfig]) -> None:
    config = other(train={"warm_steps": 0, "dual_steps": 2})
    train(config)
    resume(config.directory, ["train.dual_steps=4", "constraints.old.prior.max_kl=0.1"])
    assert [row["threshold"] for row in rows(config.directory, "dual.jsonl")] == [0.5, 0.1]
    assert events(config.directory, "budget")[0]["text"] == "old: threshold 0.500 -> 0.100 nats"
    with pytest.raises(InputError, match=r"replay\.samples cannot change"):
        resume(config.directory, ["replay.samples=5"])


def test_the_loss_statistic_counts_from_the_pretrained_model_s_own_loss(other: Callable[..., RunConfig]) -> None:
    config = other(constraints={"old": {"prior": {"max_kl": 0.25, "statistic": "loss"}, "window": 0.5}})
    train(config)
    calibrated, *_ = events(config.directory, "calibrated")
    assert calibrated["reference_loss"] == pytest.approx(calibrated["warm_loss"], rel=1e-5)
    assert calibrated["threshold"] == pytest.approx(calibrated["reference_loss"] + 0.25)


def test_an_off_loaded_teacher_says_the_same(home: Path, other: Callable[..., RunConfig]) -> None:
    config = other(replay={"teacher_offload": True})
    assert "CPU memory   in addition: copies for saves" in describe_plan(config)
    assert "teacher" in describe_plan(config).partition("CPU memory")[2].splitlines()[0]
    train(config)
    assert same_weights(config.directory, home / "tuned")
    assert rows(config.directory, "dual.jsonl") == rows(home / "tuned", "dual.jsonl")


@pytest.mark.parametrize(("target", "teacher"), [("teacher", True), ("noise", False)])
def test_the_pretrained_model_as_the_objective(
    target: str, teacher: bool, home: Path, other: Callable[..., RunConfig]
) -> None:
    """The base stream is replay; the new data come in by their own constraint."""
    nine = {"nine": {"class": 9, "max_loss": 1.0, "window": 0.5}}
    config = other(constraints=nine, replay={"objective": True, "target": target}, dual={"eta": 0.1})
    train(config)
    epochs = [event["streams"] for event in events(config.directory, "data")]
    assert epochs[0] == {"base": {"promised": 32, "arrived": 32, "replaced": 0}}
    journal = rows(config.directory, "dual.jsonl")
    assert [row["constraint"] for row in journal] == ["nine", "nine"]
    assert journal[0]["lambda"] > 0
    assert ("teacher_s" in rows(config.directory, "metrics.jsonl")[0]) == teacher


def test_budgets_of_new_data_where_the_pretrained_model_is_the_objective(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Nats above a model that knows them, and a share that a classifier sees: both are binding from the first batch."""
    judge = tmp_path / "judge.safetensors"
    classifier_of(Index.load(home / "new"), steps=5).save(judge)
    constraints = {
        "nine": {"class": 9, "max_kl": 1.0, "reference": str(home / "tuned"), "window": 0.5},
        "eight": {"class": 8, "generated_frequency": {"min": 0.25, "classifier": str(judge)}},
    }
    probe = {"generated_samples": 20}
    config = other(constraints=constraints, replay={"objective": True}, probe=probe, train={"warm_steps": 0})
    run = train(config)
    nine, eight = run.calibration()
    assert nine["threshold"] == pytest.approx(nine["reference_loss"] + 1)
    assert nine["reference_loss"] != nine["warm_loss"]
    assert eight["threshold"] == pytest.approx(-np.log(0.25))
    drawn = events(config.directory, "data")[0]["streams"]  # of 32, as the closed form has it: exp(-1) and a quarter
    assert drawn["constraint nine"]["arrived"] == pytest.approx(32 * np.exp(-1), abs=2)
    assert drawn["constraint eight"]["arrived"] == pytest.approx(32 * 0.25, abs=2)
    assert {row["constraint"] for row in rows(config.directory, "dual.jsonl")} == {"nine", "eight"}


def test_from_a_pipeline_of_diffusers(home: Path, other: Callable[..., RunConfig], tmp_path: Path) -> None:
    """What we export of a run is one; the fine-tuned network can be exported again."""
    unet = {"kind": "unet", "channels": [8], "layers_per_block": 1, "norm_groups": 4}
    tree = tiny.config(home / "old", tmp_path / "unet", constraints={}).model_dump(mode="json", by_alias=True)
    first = train(RunConfig.model_validate(tree | {"network": unet}))
    first.export(tmp_path / "pipeline")
    run = train(other(init=tmp_path / "pipeline"))
    assert run.config.resolved_network.kind == "diffusers"
    assert events(run.directory, "calibrated")[0]["warm_loss"] == pytest.approx(0, abs=1e-9)
    run.export(tmp_path / "again")
    found = divergence_from_origin(run, 10)
    assert found is not None
    assert found.nats > 0


def test_stored_answers_stand_for_the_teacher(home: Path, other: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Asked once for all runs, and training goes on bit by bit; either side may be replay."""
    replay = SECTIONS["replay"] | {"teacher_draws": 2}
    whole = tiny.config(home / "new", tmp_path / "whole", home / "pretrained", **SECTIONS | {"replay": replay})
    reports: list[dict[str, Any]] = []
    train(whole, reports.append)
    assert {"phase": "teacher", "step": 48, "total": 48} in reports
    halves = other(replay=replay, train={"warm_steps": 0, "dual_steps": 2})
    train(halves, reports.append)
    resume(halves.directory, ["train.dual_steps=4"], reports.append)
    assert len([report for report in reports if report["phase"] == "teacher"]) == 1
    assert same_weights(whole.directory, halves.directory)
    assert not same_weights(whole.directory, home / "tuned")
    assert all(row["teacher_s"] > 0 for row in rows(whole.directory, "metrics.jsonl"))
    shutil.rmtree(halves.directory)
    nine = {"nine": {"class": 9, "max_loss": 1.0, "window": 0.5}}
    train(other(constraints=nine, replay=replay | {"objective": True}, dual={"eta": 0.1}))


@pytest.mark.parametrize("engine", [{"zero_stage": 0}, {"zero_stage": 2, "precision": "bf16"}, {"zero_stage": 3}])
def test_an_adapter_is_trained_in_place_of_the_weights(
    engine: dict[str, Any], home: Path, other: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Frozen weights stay as they were, the rest of the system sees a plain network, and it goes on bit by bit."""
    pytest.importorskip("peft", reason="the extra lora")
    adapter = {"rank": 2}
    whole = tiny.config(
        home / "new", tmp_path / "whole", home / "pretrained", adapter=adapter, engine=engine, **SECTIONS
    )
    train(whole)
    halves = other(adapter=adapter, engine=engine, train={"warm_steps": 0, "dual_steps": 2})
    train(halves)
    resume(halves.directory, ["train.dual_steps=4"])
    stored, again = (read_weights(Run(config.directory).checkpoint) for config in (whole, halves))
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)

    run, before = Run(whole.directory), network_weights(Run(home / "pretrained").checkpoint)
    for name, weight in stored.items():
        if "lora_" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "")])
    after = network_weights(run.checkpoint)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert events(run.directory, "calibrated")[0]["warm_loss"] == pytest.approx(0, abs=1e-9)
    assert run.sample(2).shape == (2, 1, 8, 8)
    run.export(tmp_path / "export")
    assert "adapters of rank" in (run.directory / "README.md").read_text()
    following = tiny.config(home / "new", tmp_path / "next", run.directory, adapter=adapter, **SECTIONS)
    assert "are trained" in describe_plan(following)


def test_an_adapter_needs_a_pretrained_model_and_peft(
    home: Path, other: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="adapter needs a pretrained model: add `init: RUN`"):
        tiny.config(home / "old", tmp_path / "other", adapter={"rank": 2})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="adapter: it needs the package peft"):
        check(other(adapter={"rank": 2}))


def test_the_divergence_on_fresh_samples(home: Path) -> None:
    run = cdt.load(home / "tuned")
    found = divergence_from_origin(run, 40)
    assert found is not None
    assert (found.samples, found.window, found.statistic, found.budget) == (40, 0.5, "distance", 0.5)
    assert 0 < found.nats < 50 * found.standard_error
    assert divergence_from_origin(cdt.load(home / "pretrained"), 40) is None


def test_the_plan_says_where_it_begins_and_what_the_budget_leaves(home: Path, other: Callable[..., RunConfig]) -> None:
    plan = describe_plan(other())
    assert f"starts from  {home / 'pretrained'}" in plan
    assert "24 samples of the pretrained model; they are there" in plan
    assert "a share of up to 39.3%" in plan
    assert "they will be drawn" in describe_plan(other(replay={"seed": 9}))


def test_samples_as_shards_are_replay_too(home: Path, other: Callable[..., RunConfig], tmp_path: Path) -> None:
    from cdt.cli.command import main

    shards = tmp_path / "shards"
    assert main(["sample", str(home / "pretrained"), "-n", "9", "-o", str(shards)]) == 0
    assert Index.load(shards).count == 9
    bound = check(other(replay={"shards": str(shards)})).bound
    assert [len(found) for found in bound.requirements.rows.values()] == [9]
    assert main(["sample", str(home / "pretrained"), "-n", "9", "-o", str(shards)]) == 2


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"network": {"kind": "dit", "depth": 3}}, "network: it differs from that of"),
        ({"diffusion": {"prediction": "epsilon"}}, "diffusion.prediction: "),
        ({"replay": {"objective": True}}, "the pretrained model is already the objective"),
        ({"replay": {"objective": True}, "constraints": {}}, "nothing would be learnt from the new data"),
        ({"replay": {"sampler": {"steps": 3000}}}, "sampler.steps: 3000 is more than"),
        ({"replay": {"shards": "nowhere"}}, "no such directory: nowhere"),
        ({"data": {"estimator": "reweight"}}, "data.estimator: reweight weighs samples of the objective"),
        (
            {
                "replay": {"objective": True},
                "constraints": {"nine": {"class": 9, "min_frequency": 0.2}},
            },
            "constraints.nine.min_frequency: it needs the pretrained model's own share of this class",
        ),
        (
            {"dual": {"estimate": "training"}, "replay": {"target": "noise"}},
            "dual.estimate: training sees what is regressed onto replay.target noise, which is not the distance",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    sections: dict[str, Any], reason: str, other: Callable[..., RunConfig]
) -> None:
    with pytest.raises(InputError) as caught:
        check(other(**sections))
    assert reason in str(caught.value)


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_the_ready_configurations_go_together(data: str, home: Path) -> None:
    """All but their data is as it stands there."""
    configs = Path(__file__).parents[2] / "configs"
    first = RunConfig.load(configs / f"{data}-pretrain.yaml", [f"data.shards={home / 'old'}"])
    second = RunConfig.load(
        configs / f"{data}-finetune.yaml", [f"init={home / 'pretrained'}", f"data.shards={home / 'new'}"]
    )
    assert resolve(second).diffusion.prediction == first.diffusion.prediction
    assert second.train.batch_size == first.train.batch_size
    checked = check(second.model_copy(update={"run": first.run.model_copy(update={"name": "x", "workers": 0})}))
    assert checked.bound.replay is not None
    assert checked.bound.requirements.names == ("old",)


def test_a_prior_without_a_pretrained_model_is_refused(home: Path, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [{"constraints": OLD}, {"replay": {"objective": True}}]
    for sections in cases:
        with pytest.raises(InputError, match="needs a pretrained model: add `init: RUN`"):
            tiny.config(home / "old", tmp_path / "other", **sections)


def test_replay_of_other_images_is_refused(other: Callable[..., RunConfig], tmp_path: Path) -> None:
    shard(SOURCES["digits"](), tmp_path / "larger", only=["2"], resize=16)
    with pytest.raises(InputError, match=r"its images have shape \(1, 16, 16\)"):
        check(other(replay={"shards": str(tmp_path / "larger")}))

"""Conditions on their way: those that arrive are those of the samples at their positions, wherever samples go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_audit_scenarios import spoiled_copy
from ten_samples import CONFIG, SHAPE, answers_at
from torch import Tensor, nn

from cdt.condition import Condition, Conditions
from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.plan.order import stream_key
from cdt.data.read.reader import ImageReader, normalise
from cdt.data.stream import Batch, MixtureStream
from cdt.diffusion.config import DiffusionConfig, SamplerConfig
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.sampler import Sampler
from cdt.dual import Draws
from cdt.engine.ranks import Ranks
from cdt.errors import InputError
from cdt.measure.probe import Probe, ProbeSet
from cdt.measure.reference import Reference
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig, UNetConfig
from cdt.origin.answers import Answers
from cdt.origin.teacher import Teacher
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums

DIFFUSION = Diffusion.from_config(DiffusionConfig())
BATCH, SEED = 12, 3
LAMBDAS = np.array([0.5])


class RowNumbers(Conditions):
    """Each sample's label is its own row, so a label tells which sample it belongs to; pooled is made by position."""

    def of(self, rows: np.ndarray) -> Condition:
        return Condition(labels=torch.as_tensor(rows), pooled=torch.zeros(len(rows), 1))

    def at(self, rows: np.ndarray, positions: np.ndarray) -> Condition:
        return Condition(labels=torch.as_tensor(rows), pooled=torch.as_tensor(positions)[:, None].float())

    def fingerprint(self) -> bytes:
        return b"row numbers"


class Listening(nn.Module):
    """A conditional network that learns nothing, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.heard: list[tuple[Tensor, Tensor, Condition]] = []

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        assert condition is not None
        self.heard.append((x.clone(), time.clone(), condition))
        return self.gain * x

    def labels(self) -> Tensor:
        assert all(condition.labels is not None for _, _, condition in self.heard)
        return torch.cat([c.labels for _, _, c in self.heard if c.labels is not None])


class Engine:
    """What train_step needs of one."""

    dtype = torch.float32

    def __init__(self, accumulation: int) -> None:
        self.network, self.accumulation = Listening(), accumulation

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> None:
        self.network.gain.grad = None


def stream(index: Index, rank: int = 0, world: int = 1, workers: int = 0) -> MixtureStream:
    config = DataConfig(shards=str(index.root), loader_workers=workers, max_bad_fraction=1.0)
    fours = np.flatnonzero(index.classes == 4)
    return MixtureStream(
        config,
        index,
        {"four": fours},
        np.isin(np.arange(index.count), fours).astype(np.int64),
        lambda lambdas: Draws(np.array([1.0, *lambdas]) / (1 + lambdas.sum()), np.ones(2), np.ones(2)),
        conditions=RowNumbers(),
        lambdas=LAMBDAS,
        batch_size=BATCH,
        seed=SEED,
        rank=rank,
        world=world,
    )


def labels_of(batch: Batch) -> Tensor:
    assert batch.condition is not None
    assert batch.condition.labels is not None
    assert batch.condition.pooled is not None
    assert torch.equal(batch.condition.pooled[:, 0].long(), batch.positions), "made by position"
    return batch.condition.labels


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_labels_are_those_of_the_samples_in_a_batch(digits: Index, world: int, workers: int) -> None:
    reader = ImageReader(digits, 512)
    whole = next(stream(digits))
    for rank in range(world):
        streams = stream(digits, rank, world, workers)
        for _ in range(3):
            batch = next(streams)
            labels = labels_of(batch)
            assert torch.equal(labels, batch.rows)
            assert torch.equal(batch.images, torch.from_numpy(normalise(reader.images(labels.numpy()))))
    assert torch.equal(labels_of(whole), torch.cat([labels_of(next(stream(digits, r, world))) for r in range(world)]))


def test_a_resumed_stream_goes_on_with_the_same_labels(digits: Index) -> None:
    first = stream(digits)
    for _ in range(2):
        next(first)
    state, expected = first.state(), [labels_of(next(first)) for _ in range(3)]
    again = stream(digits, workers=1)
    again.restore(state)
    assert all(torch.equal(labels_of(next(again)), labels) for labels in expected)


def test_a_sample_that_was_replaced_brings_its_own_label(digits: Index, tmp_path: Path) -> None:
    rows = next(stream(digits)).rows.numpy()
    spoiled = spoiled_copy(digits, tmp_path / "spoiled", [int(rows[5])])
    batch = next(stream(spoiled))
    labels = labels_of(batch)
    assert batch.rows[5] == -1
    assert labels[5] != rows[5]
    assert digits.classes[int(labels[5])] == digits.classes[rows[5]]
    assert torch.equal(batch.images, torch.from_numpy(normalise(ImageReader(spoiled, 0).images(labels.numpy()))))


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 2)])
def test_the_network_hears_them_with_their_samples(digits: Index, world: int, accumulation: int) -> None:
    for rank in range(world):
        engine, batch = Engine(accumulation), next(stream(digits, rank, world))
        sums = PeriodSums(np.array([10.0, 10.0]), DIFFUSION, torch.device("cpu"))
        train_step(engine, DIFFUSION, batch, sums, learning_rate=0.1, seed=SEED, batch_size=BATCH)
        assert len(engine.network.heard) == accumulation
        assert torch.equal(engine.network.labels(), labels_of(batch))
        images = torch.from_numpy(normalise(ImageReader(digits, 512).images(engine.network.labels().numpy())))
        logsnr = DIFFUSION.process.level(stratified(SEED, batch.positions, BATCH))
        x = DIFFUSION.process.noised(images, logsnr, normals(SEED, batch.positions, tuple(images.shape[1:])))
        assert torch.equal(torch.cat([x for x, _, _ in engine.network.heard]), x)


def test_the_teacher_hears_those_of_replayed_samples(digits: Index) -> None:
    network, batch = Listening().requires_grad_(False), next(stream(digits))
    replayed = torch.tensor([False, True])
    teacher = Teacher(network, DIFFUSION.process, replayed, torch.float32, partitioned=False)
    engine = Engine(2)
    sums = PeriodSums(np.array([10.0, 10.0]), DIFFUSION, torch.device("cpu"))
    train_step(engine, DIFFUSION, batch, sums, teacher, learning_rate=0.1, seed=SEED, batch_size=BATCH)
    assert 0 < len(network.labels()) < BATCH
    assert torch.equal(network.labels(), labels_of(batch)[replayed[batch.cells]])


def test_stored_answers_are_asked_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, network = answers_at(tmp_path, monkeypatch)(3), Listening().requires_grad_(False)
    answers = Answers(plain.origin, plain.replay, 3, RowNumbers())
    assert answers.path != plain.path
    monkeypatch.setattr(type(plain.origin), "build", lambda self, shape: network)
    answers.ask()
    assert network.labels().tolist() == [row for row in range(10) for _ in range(3)]
    stored = np.load(answers.path)
    x = torch.cat([x for x, _, _ in network.heard])
    np.testing.assert_allclose(
        stored, answers.origin.process.eps_of(0.5 * x, x, logsnr_of(network)).numpy(), atol=2e-3, rtol=2e-3
    )


def logsnr_of(network: Listening) -> Tensor:
    return Diffusion.from_config(CONFIG).process.logsnr(torch.cat([time for _, time, _ in network.heard]))


def test_the_probe_measures_with_them(digits: Index, alone: Ranks) -> None:
    reader, network = ImageReader(digits, 512), Listening().requires_grad_(False)
    sets = [
        ProbeSet(str(c), np.flatnonzero(digits.classes == c)[:5], reader, window, conditions=RowNumbers())
        for c, window in ((4, 10.0), (7, 9.0))
    ]
    probe = Probe(sets, 11, DIFFUSION.process, alone, seed=3, chunk=8)
    probe.measure(network, probe.all)
    labels, position = network.labels(), torch.arange(22)
    assert sorted(set(digits.classes[labels.numpy()].tolist())) == [4, 7]
    x = torch.cat([x for x, _, _ in network.heard])
    logsnr = DIFFUSION.process.logsnr(torch.cat([time for _, time, _ in network.heard]))
    images = torch.from_numpy(normalise(reader.images(labels.numpy())))
    eps = normals(stream_key(3, "probe"), position, tuple(images.shape[1:]))
    torch.testing.assert_close(x, DIFFUSION.process.noised(images, logsnr, eps), atol=1e-3, rtol=1e-3)


def test_a_reference_hears_them() -> None:
    reference = Reference.__new__(Reference)
    nn.Module.__init__(reference)
    reference._theirs = reference._ours = DIFFUSION.process
    reference.network = Listening()
    reference(torch.zeros(3, *SHAPE), torch.tensor([1.0, 2.0, 3.0]), Condition(labels=torch.tensor([7, 8, 9])))
    assert reference.network.labels().tolist() == [7, 8, 9]


def test_samples_are_drawn_with_theirs() -> None:
    network = Listening()
    sampler = Sampler(SamplerConfig(name="ddim", steps=2), DIFFUSION.process, SHAPE)
    sampler.draw(network, 5, seed=0, conditions=Condition(labels=torch.arange(10, 15)), batch_size=2)
    assert [c.labels.tolist() for _, _, c in network.heard if c.labels is not None] == [
        labels for labels in ([10, 11], [12, 13], [14]) for _ in range(2)
    ]


@pytest.mark.parametrize("config", [DiTConfig(width=16, depth=1, heads=2), UNetConfig(channels=(8,))])
def test_a_network_that_takes_none_refuses_one(config: DiTConfig | UNetConfig) -> None:
    network = build_network(config, SHAPE)
    x, time = torch.zeros(2, *SHAPE), torch.tensor([1.0, 2.0])
    assert network(x, time, None).shape == x.shape
    assert network(x, time, Condition()).shape == x.shape
    with pytest.raises(InputError, match=r"is unconditional; it cannot be given labels$"):
        network(x, time, Condition(labels=torch.tensor([0, 1])))


def test_parts_of_a_condition() -> None:
    condition = Condition(labels=torch.arange(6), mask=torch.arange(12).reshape(6, 2) > 5)
    parts = condition.split(3)
    assert [part.labels.tolist() for part in parts if part.labels is not None] == [[0, 1], [2, 3], [4, 5]]
    whole = Condition.joined(parts)
    assert whole.labels is not None
    assert whole.mask is not None
    assert condition.mask is not None
    assert torch.equal(whole.labels, torch.arange(6))
    assert torch.equal(whole.mask, condition.mask)
    assert whole.tokens is whole.pooled is None
    some = condition.of(torch.tensor([4, 1]))
    assert some.labels is not None
    assert some.labels.tolist() == [4, 1]

"""Run directories, opened: weights, samples, journals, cards, exports, evaluation; and those that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from cdt.checkpoints.checkpoint import read_weights
from cdt.data.format.index import Index
from cdt.errors import DamagedWarning, InputError
from cdt.evaluate.results import Evaluation
from cdt.judges import Classifier
from cdt.networks.dit import load_dit
from cdt.runs.evaluation import evaluate_run, read_images, train_judge
from cdt.runs.run import Run, load
from cdt.runs.start import train

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:__array__ implementation"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the tiny DiT; its shards lie beside it."""
    home = tmp_path_factory.mktemp("home")
    return train(tiny.config(tiny.write_shards(home / "data"), home / "whole"))


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    """The directory of a run that may be damaged."""
    return Path(shutil.copytree(run.directory, tmp_path / "copy"))


def test_what_is_no_run_is_said(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such directory: .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is no run directory: it has no config\.yaml"):
        load(tmp_path)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="has no complete checkpoint yet"):
        load(copy).sample(1)
    (copy / "data.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.json cannot be read"):
        load(copy).sample(1)
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text() + "netwrk: {}\n")
    with pytest.raises(InputError, match=r"config\.yaml: netwrk: unknown key; did you mean network\?"):
        load(copy)


def test_any_checkpoint_can_be_opened(copy: Path) -> None:
    assert Run(copy).checkpoint == Run(copy, "8").checkpoint == copy / "checkpoints" / "step-000000008"
    assert load(copy, "4").state.step == 4
    assert Run(copy, "best").state.step == 8  # no requirement was measured before
    for which in ("7", "first"):
        with pytest.raises(InputError, match=f"has no checkpoint {which}: there are last, best, 4, 8"):
            _ = Run(copy, which).checkpoint


def test_a_checkpoint_that_lacks_something_does_not_count(copy: Path) -> None:
    assert load(copy).state.step == 8
    (copy / "checkpoints" / "step-000000008" / "ema.safetensors").unlink()
    with pytest.warns(
        DamagedWarning, match=r"copy: step-000000008 is damaged: ema.safetensors: missing, or .* is taken"
    ):
        assert load(copy).state.step == 4


def test_weights_that_do_not_fit_are_said_in_a_line(copy: Path) -> None:
    ema = copy / "checkpoints" / "step-000000008" / "ema.safetensors"
    whole = ema.read_bytes()
    ema.write_bytes(b"\xff" * len(whole))
    with pytest.raises(InputError, match=r"step-000000008/ema\.safetensors cannot be read"):
        load(copy, check=False).network()
    ema.write_bytes(whole)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 32"))
    with pytest.raises(InputError, match="step-000000008 is damaged or of another network") as caught:
        load(copy).network()
    assert "\n" not in str(caught.value)


def test_the_average_is_sampled_unless_the_raw_weights_are_asked_for(run: Run) -> None:
    for raw in (False, True):
        weights = read_weights(run.checkpoint, raw)
        network = run.network(raw=raw)
        assert not network.training
        assert all(torch.equal(weight, weights[name]) for name, weight in network.named_parameters())
    assert not torch.equal(run.sample(2), run.sample(2, raw=True))


def test_a_sample_depends_on_seed_and_number_alone(run: Run) -> None:
    images = run.sample(7, seed=3)
    assert images.shape == (7, 1, 8, 8)
    assert images.abs().max() <= 1
    torch.testing.assert_close(run.sample(7, seed=3, batch_size=2), images, atol=1e-3, rtol=0)
    torch.testing.assert_close(run.sample(2, seed=3, first=5), images[5:], atol=1e-3, rtol=0)
    assert (run.sample(7, seed=4) - images).abs().mean() > 0.05
    assert not torch.equal(run.sample(2, sampler="ddim", steps=10), run.sample(2))


def test_the_journal_is_read_up_to_the_last_word_on_each_constraint(copy: Path) -> None:
    journal = copy / "dual.jsonl"
    whole = [json.loads(line) for line in journal.read_text().splitlines()]
    run = load(copy)
    assert run.constraint_rows() == whole[-2:]
    assert [row["period"] for row in run.constraint_rows()] == [2, 2]
    with journal.open("a") as file:
        file.write('{"period": 3, "constr')
    assert run.constraint_rows() == whole[-2:]
    journal.unlink()
    assert run.constraint_rows() == []


def test_the_card_states_data_requirements_and_limits(run: Run) -> None:
    card = (run.directory / "README.md").read_text()
    four = run.constraint_rows()[0]
    for words in (
        "digits, split train; 741 training images",
        "| 4 | 18 | 2.4% |",
        "class 4: at least 0.2 of the generated samples",
        f"| {four['threshold']:.2f} | {four['loss']:.2f} | {four['lambda']:.3f} |",
        "Not measured.",
        "| steps | 8 |",
    ):
        assert words in card
    assert [row["constraint"] for row in run.calibration()] == ["four", "five"]


def test_an_exported_dit_has_the_average_and_draws_the_same_images(run: Run, tmp_path: Path) -> None:
    run.export(tmp_path / "exported", steps=5)
    network = load_dit(tmp_path / "exported").eval()
    x, timestep = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 500.0, 999.0])
    assert torch.equal(network(x, timestep), run.network()(x, timestep))
    with pytest.raises(InputError, match="is not empty"):
        run.export(tmp_path / "exported")
    with pytest.raises(InputError, match=r"sampler\.steps: 2000"):
        run.export(tmp_path / "other", steps=2000)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Index]:
    """A judge and the full, balanced data that it knows the classes of the run from."""
    root = tiny.write_shards(tmp_path_factory.mktemp("reference") / "full", keep={}, only=[])
    reference = Index.load(root)
    return train_judge(reference), reference


def test_an_evaluation_is_kept_and_renews_the_card(copy: Path, judge: tuple[Classifier, Index]) -> None:
    run, (classifier, reference) = load(copy), judge
    real, labels = read_images(Index.load(run.config.data.shards))
    evaluation = evaluate_run(run, reference, classifier, real[:200])
    assert Evaluation.from_json((copy / "evaluation.json").read_text()) == evaluation
    assert evaluation.class_counts == (0, 0, 177, 183, 18, 182, 181, 0, 0, 0)
    assert [(c.name, c.classes, c.min_frequency) for c in evaluation.constraints] == [
        ("four", (4,), 0.2),
        ("five", (5,), None),
    ]
    truth = torch.bincount(labels[:200], minlength=10) / 200
    assert torch.tensor(evaluation.shares).sub(truth).abs().max() < 0.05
    assert sum(found.near_copies for found in evaluation.near_copies) > 50  # the samples are training images
    card = (copy / "README.md").read_text()
    assert "Classes of 200 samples, as a classifier sees them" in card
    assert "It may repeat training images" in card


def test_an_evaluation_that_is_not_to_be_kept(copy: Path, judge: tuple[Classifier, Index]) -> None:
    classifier, reference = judge
    evaluate_run(load(copy), reference, classifier, read_images(reference)[0][:20], save=False)
    assert not (copy / "evaluation.json").exists()


def test_a_reference_of_other_images_is_refused(run: Run, judge: tuple[Classifier, Index], tmp_path: Path) -> None:
    smaller = Index.load(tiny.write_shards(tmp_path / "small", resize=4))
    with pytest.raises(InputError, match=r"small: shape \(1, 4, 4\) differ"):
        evaluate_run(run, smaller, judge[0], torch.zeros(1, 1, 8, 8))

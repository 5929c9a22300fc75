from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cdt.errors import InputError
from cdt.judges import Classifier, judge_digest, load_judge
from cdt.judges.networks import ClassifierNetwork

SHAPE = (1, 8, 8)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
JIT = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Divides(nn.Module):
    """Not finite for grey images."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 / x).flatten(1)[:, :2]


def save_script(module: nn.Module, path: Path, inside: str | None = None) -> Path:
    extra = {} if inside is None else {"labels.json": inside}
    torch.jit.save(torch.jit.script(module), path, _extra_files=extra)
    return path


@pytest.mark.parametrize("name", ["judge.safetensors", "judge"])
def test_our_own(name: str, judge: Classifier, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    judge.save(tmp_path / name)
    loaded = load_judge(tmp_path / name, SHAPE)
    assert loaded.labels == judge.labels
    assert torch.equal(loaded.probabilities(digits[0]), judge.probabilities(digits[0]))
    with pytest.raises(InputError, match=r"judge reads images of shape \(1, 8, 8\), not \(3, 8, 8\)$"):
        load_judge(tmp_path / name, (3, 8, 8))


def test_a_directory_that_diffusers_wrote(judge: Classifier, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

    class Net(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, architecture, shape, labels, held_out_correct, held_out_count) -> None:
            super().__init__()
            network = ClassifierNetwork(architecture, shape, len(labels))
            self.features, self.head = network.features, network.head

    Net.__name__ = "Classifier"
    net = Net(judge.network.architecture, SHAPE, judge.labels, judge.held_out_correct, judge.held_out_count)
    net.load_state_dict(judge.network.state_dict())
    net.save_pretrained(tmp_path / "net")
    loaded = load_judge(tmp_path / "net", SHAPE)
    assert loaded.labels == judge.labels
    assert torch.equal(loaded.probabilities(digits[0]), judge.probabilities(digits[0]))


def test_a_directory_of_another_class(tmp_path: Path) -> None:
    for config, name in (({"_class_name": "UNet2DModel"}, "'UNet2DModel'"), ([], "None")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=f"names the class {name}; of directories only a 'Classifier' of cdt"):
            load_judge(tmp_path, SHAPE)


@JIT
@pytest.mark.parametrize("suffix", [".pt", ".ts"])
def test_torchscript(suffix: str, tmp_path: Path) -> None:
    images = torch.randn(600, *SHAPE)
    expected = LINEAR(images).softmax(dim=1)
    inside = load_judge(save_script(LINEAR, tmp_path / f"a{suffix}", '["x", "y", "z"]'), SHAPE)
    beside = save_script(LINEAR, tmp_path / f"b{suffix}")
    (tmp_path / f"b{suffix}.labels.json").write_text('["u", "v", "w"]')
    for judge, labels in ((inside, ("x", "y", "z")), (load_judge(beside, SHAPE), ("u", "v", "w"))):
        assert judge.labels == labels
        assert torch.allclose(judge.probabilities(images), expected, atol=1e-6)
        with pytest.raises(InputError, match=r"reads images of shape \(1, 8, 8\), not \(1, 8, 9\)"):
            judge.probabilities(torch.zeros(1, 1, 8, 9))


@JIT
@pytest.mark.parametrize(
    ("module", "inside", "message"),
    [
        (LINEAR, None, "a judge needs labels: labels.json as an extra file inside, or a.pt.labels.json beside it"),
        (LINEAR, '{"x": 1}', "a.pt: labels.json inside: expected a JSON list of labels: Input should be a valid"),
        (LINEAR, '["x", "x", "y"]', "a label appears twice"),
        (LINEAR, '["x", "y"]', r"the judge has 2 labels, but gives \[2, 3\] for 2 images"),
        (nn.Conv2d(1, 3, 3), '["x", "y", "z"]', r"has 3 labels, but gives \[2, 3, 6, 6\]"),
        (Divides(), '["x", "y"]', r"a.pt: the judge's output has values that are not finite, and the images have none"),
        (nn.Linear(7, 3), '["x", "y"]', r"cannot read images of shape \(1, 8, 8\): RuntimeError: mat1 and mat2"),
    ],
)
def test_torchscript_that_does_not_fit(module: nn.Module, inside: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as told:
        load_judge(save_script(module, tmp_path / "a.pt", inside), SHAPE)
    assert len(str(told.value).splitlines()) == 1


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("sprung"),)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        torch.save(Trap(), "pickled.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"pickled.pt: not TorchScript \(.*\); pickled files are not read$"):
            load_judge(Path("pickled.pt"), SHAPE)
        assert not Path("sprung").exists()
    torch.load("pickled.pt", weights_only=False)
    assert Path("sprung").exists()


def test_what_is_no_judge(tmp_path: Path) -> None:
    (tmp_path / "judge.onnx").touch()
    with pytest.raises(InputError, match=r"missing.pt: no such file or directory; a judge is FILE.safetensors"):
        load_judge(tmp_path / "missing.pt", SHAPE)
    with pytest.raises(InputError, match=r"judge.onnx: a judge is FILE.safetensors .* or TorchScript \(.pt, .ts\)$"):
        load_judge(tmp_path / "judge.onnx", SHAPE)


@pytest.mark.parametrize("name", ["judge.safetensors", "judge.pt", "judge"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"not a regular file|a judge is"):
        load_judge(tmp_path / name, SHAPE)


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_a_pipe_in_a_directory_is_not_waited_for(part: str, judge: Classifier, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge")
    (tmp_path / "judge" / part).unlink()
    os.mkfifo(tmp_path / "judge" / part)
    with pytest.raises(InputError, match="not a regular file"):
        load_judge(tmp_path / "judge", SHAPE)


@pytest.mark.parametrize("text", ["", "null", "5", "[" * 100_000, "{", "\0"])
def test_a_description_that_is_damaged(text: str, judge: Classifier, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge")
    (tmp_path / "judge" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        load_judge(tmp_path / "judge", SHAPE)
    assert "\n" not in str(caught.value)


def test_weights_that_are_finite_and_output_that_is_not(judge: Classifier, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge")
    file = tmp_path / "judge" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"head.bias": torch.full_like(weights["head.bias"], torch.finfo().max)}, file)
    assert load_judge(tmp_path / "judge", SHAPE), "a softmax of equal logits is finite"
    save_file({name: weight * (1e30 if weight.is_floating_point() else 1) for name, weight in weights.items()}, file)
    with pytest.raises(InputError, match=r"^.*/judge: the judge's output has values that are not finite"):
        load_judge(tmp_path / "judge", SHAPE)


@JIT
def test_images_that_are_not_finite_are_not_the_judge_s_fault(tmp_path: Path) -> None:
    judge = load_judge(save_script(LINEAR, tmp_path / "a.pt", '["x", "y", "z"]'), SHAPE)
    assert judge.probabilities(torch.full((2, *SHAPE), torch.nan)).isnan().all()


@JIT
def test_a_digest_is_of_what_is_read_wherever_it_is(judge: Classifier, tmp_path: Path) -> None:
    for name in ("one", "two", "one.safetensors", "two.safetensors"):
        judge.save(tmp_path / name)
    assert judge_digest(tmp_path / "one") == judge_digest(tmp_path / "two")
    assert judge_digest(tmp_path / "one.safetensors") == judge_digest(tmp_path / "two.safetensors")
    settings = json.loads((tmp_path / "two" / "config.json").read_text())
    settings["labels"].reverse()
    (tmp_path / "two" / "config.json").write_text(json.dumps(settings))
    assert judge_digest(tmp_path / "one") != judge_digest(tmp_path / "two"), "other labels"
    script = save_script(LINEAR, tmp_path / "a.pt")
    digests = set()
    for labels in ('["x", "y", "z"]', '["z", "y", "x"]'):
        (tmp_path / "a.pt.labels.json").write_text(labels)
        digests.add(judge_digest(script))
    assert len(digests) == 2
    with pytest.raises(InputError, match=r"missing\.pt: No such file"):
        judge_digest(tmp_path / "missing.pt")

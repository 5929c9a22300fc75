"""The command line: what it prints, where, and its exit status. What it refuses stands in test_bad_input.py."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.numpy import load_file
from tiny_runs import flip

from cdt.cli.command import VERBS, main
from cdt.cli.parser import build_parser, parse
from cdt.cli.shards import SOURCE_ARGUMENTS
from cdt.data.sources import SOURCES
from cdt.diffusion.sampler import Sampler
from cdt.diffusion.samplers import SAMPLERS
from cdt.files import remove
from cdt.judges import ARCHITECTURES, Classifier, load_judge

Cdt = Callable[..., tuple[int, str, str]]
"""``cdt(*arguments)`` to exit status, stdout and stderr."""


@pytest.fixture
def cdt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cdt:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in ``data`` and configurations; ``runs/tiny`` is finished."""
    home = tmp_path_factory.mktemp("home")
    shards = tiny.write_shards(home / "data")
    tiny.write_config(home / "tiny.yaml", shards)
    assert main(["train", str(home / "tiny.yaml")]) == 0
    return home


def test_training_shows_a_bar_and_a_table_and_nothing_else(home: Path, cdt: Cdt) -> None:
    status, out, err = cdt("train", home / "tiny.yaml", "run.name=again")
    bar, head, four, five, where = out.strip().splitlines()
    assert (status, err) == (0, "")
    assert bar.startswith("again dual")
    assert "8/8" in bar
    assert head.split() == ["constraint", "lambda", "loss", "threshold", "slack", "satisfied", "share", "of", "samples"]
    assert [four.split()[0], five.split()[0]] == ["four", "five"]
    assert where.startswith(f"run: {home / 'runs' / 'again'}")


def test_a_plan_is_printed_and_nothing_written(home: Path, cdt: Cdt) -> None:
    status, out, err = cdt("train", home / "tiny.yaml", "--dry-run", "run.name=plan", "train.batch_size=32")
    assert (status, err) == (0, "")
    assert "  batch_size: 32" in out.splitlines()
    weights = load_file(home / "runs" / "tiny" / "checkpoints" / "step-000000008" / "ema.safetensors")
    assert f"{sum(weight.size for weight in weights.values()):,} parameters (dit)" in out
    assert not (home / "runs" / "plan").exists()


def test_the_plan_of_a_network_that_comes_with_weights(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
    )
    unet.save_pretrained(tmp_path / "unet")
    network = f"network={{kind: diffusers, path: {tmp_path / 'unet'}}}"
    status, out, err = cdt("train", home / "tiny.yaml", "run.name=plan", network, "--dry-run")
    assert (status, err) == (0, "")
    assert f"{unet.num_parameters():,} parameters (diffusers)" in out


@pytest.mark.parametrize("place", range(4))
def test_overrides_may_stand_before_and_after_options(place: int) -> None:
    words = ["a.yaml", "run.name=x", "train.lr=1"]
    arguments = parse(build_parser(VERBS.values()), ["train", *words[:place], "--dry-run", *words[place:]])
    assert arguments.config == Path("a.yaml")
    assert arguments.overrides == ["run.name=x", "train.lr=1"]
    assert arguments.dry_run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train"], "the following arguments are required: CONFIG\n"),
        (["train", "a.yaml", "--dryrun"], "unrecognized arguments: --dryrun"),
        (["sample", "run", "-o", "x.png", "-n", "0"], "argument -n: must be at least 1"),
        (["sample", "run", "more", "-o", "x.png"], "unrecognized arguments: more"),
        (["evaluate", "run", "-n", "many"], "argument -n: invalid positive value"),
        (["shard", "digits"], "the following arguments are required: OUT\n"),
        (["shard", "numbers", "out"], "invalid choice: 'numbers'"),
    ],
)
def test_wrong_words_are_told_with_the_usage(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    said = capsys.readouterr().err
    assert said.startswith("usage: cdt")
    assert told in said


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (
        "shard digits",
        "shard idx",
        "shard folder",
        "verify",
        "train",
        "resume",
        "sample",
        "classifier",
        "evaluate",
    ):
        with pytest.raises(SystemExit, match="0"):
            main([*verb.split(), "--help"])
        assert f"usage: cdt {verb}" in capsys.readouterr().out


def test_shards_are_written_and_verified(tmp_path: Path, cdt: Cdt) -> None:
    out = tmp_path / "out"
    status, said, err = cdt("shard", "digits", out, "--only", "3,4", "--keep", "4=0.5", "--split", "train=0.9,test=0.1")
    assert (status, err) == (0, "")
    first, *splits = said.strip().splitlines()
    assert first == f"{out}: 283 samples in 2 shards"
    assert [line.split(":")[0].strip() for line in splits] == ["train", "test"]
    assert "3 165, 4 82" in splits[0]
    assert cdt("verify", out) == (0, f"\n{out}: 283 samples in 2 shards are as the index says\n", "")


def test_samples_as_a_picture_and_as_numbers(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    run, picture, numbers = home / "runs" / "tiny", tmp_path / "grid.png", tmp_path / "many.npz"
    assert cdt("sample", run, "-n", "5", "-o", picture) == (0, f"5 samples of step-000000008: {picture}\n", "")
    assert cdt("sample", run, "-n", "5", "-o", numbers, "--seed", "0")[0] == 0
    images = np.load(numbers)["images"]
    assert (images.shape, images.dtype) == ((5, 1, 8, 8), np.uint8)
    grid = np.asarray(Image.open(picture))
    assert np.array_equal(grid[:32:4, :32:4], images[0, 0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "many.npz"]


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("x.jpg", "-o x.jpg: the name must end in .npz or .png"),
        ("no/x.png", "-o no/x.png: no such directory: no"),
        ("d.png", "-o d.png: this is a directory; name a file"),
        ("loop", "-o: loop: its links lead in a circle"),
        ("loop/new", "-o: loop/new: its links lead in a circle"),
        ("file/new", "-o: file/new: cannot write in file: Not a directory"),
        (f"{'x' * 252}.png", f"-o: {'x' * 252}.png: cannot write in .: File name too long"),
        ("a\nb/x.png", "-o a?b/x.png: no such directory: a?b"),
    ],
)
def test_where_samples_cannot_go(
    out: str, told: str, home: Path, tmp_path: Path, cdt: Cdt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Sampler, "draw", None)  # it is refused before
    Path("d.png").mkdir()
    Path("file").touch()
    Path("loop").symlink_to("loop")
    assert cdt("sample", home / "runs" / "tiny", "-o", out) == (2, "", f"cdt sample: {told}\n")


def test_a_disk_that_refuses_samples_is_told_in_a_line(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    """A limit on the size of files stands for the full disk; samples that were there stay."""
    out = tmp_path / "x.npz"
    out.write_text("earlier samples")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        status, _, err = cdt("sample", home / "runs" / "tiny", "-n", "9", "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert err.startswith("cdt sample: ")
    assert "File too large" in err
    assert len(err.splitlines()) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier samples"]


def test_a_name_with_a_line_break_does_not_break_the_line(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    run = Path(shutil.copytree(home / "runs" / "tiny", tmp_path / "a\n[b]\x1b[2J"))
    shown = str(run).replace("\n", "?").replace("\x1b", "?")
    for arguments in (("status", run), ("sample", run, "-n", "1", "-o", tmp_path / "x.png"), ("resume", run)):
        _, out, err = cdt(*arguments)
        assert all(line.replace("…", "").isprintable() for line in (out + err).splitlines())
        assert "\nb" not in out + err
    assert cdt("resume", run)[2].startswith(f"cdt resume: {shown} is complete: 8 of 8 steps are done; more with ")
    remove(run / "config.yaml")
    assert cdt("status", run) == (2, "", f"cdt status: {shown} is no run directory: it has no config.yaml\n")


def test_a_damaged_checkpoint_is_announced_once(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    """Also where the run ends before it, so that it stays the newest."""
    run = Path(shutil.copytree(home / "runs" / "tiny", tmp_path / "run"))
    flip(run / "checkpoints" / "step-000000008" / "ema.safetensors")
    with warnings.catch_warnings():
        status, out, err = cdt("resume", run, "train.dual_steps=3")
    assert (status, err) == (0, "")
    told = "step-000000008 is damaged: ema.safetensors: contents differ from its manifest; it is passed over, "
    assert [line for line in out.splitlines() if "is damaged" in line] == [f"{told}step-000000004 is taken"]


def test_evaluation_and_export(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    full = tiny.write_shards(tmp_path / "full", keep={}, only=[])
    status, out, err = cdt("evaluate", home / "runs" / "tiny", "-n", "10", "--reference", full)
    assert (status, err) == (0, "")
    assert "tiny" in out
    assert (home / "runs" / "tiny" / "evaluation.json").is_file()
    status, out, err = cdt("export", home / "runs" / "tiny", tmp_path / "exported")
    assert (status, err) == (0, "")
    assert "README.md says how to load it" in out
    assert cdt("export", home / "runs" / "tiny", tmp_path / "exported")[0] == 2


def test_a_classifier_of_classes(home: Path, tmp_path: Path, cdt: Cdt) -> None:
    out = tmp_path / "judge.safetensors"
    status, said, err = cdt("classifier", home / "data", out, "--steps", "40")
    assert (status, err) == (0, "")
    rows = [line.split() for line in said.strip().splitlines() if line.strip(" ─")]
    assert [row[0] for row in rows] == ["label", "2", "3", "4", "5", "6", "mean", "Left", "classifier"]
    assert rows[1][1] == "22"
    assert rows[-1] == ["classifier", "of", "5", "labels:", str(out)]
    judge = load_judge(out, (1, 8, 8))
    assert isinstance(judge, Classifier)
    assert judge.labels == ("2", "3", "4", "5", "6")
    assert judge.network.architecture == "plain"
    assert " ".join(rows[-2]) == "Left out, as there are fewer than 2 images of each: 0, 1, 7 and 2 more."
    assert rows[-3] == ["mean", "of", "labels", *rows[-3][3:5], f"{judge.accuracy:.1%}"]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_classifier_of_an_attribute(tmp_path: Path, cdt: Cdt) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    lines = ["file,bright"]
    for number in range(40):
        Image.new("L", (8, 8), 40 + 150 * (number % 2)).save(tmp_path / "images" / "a" / f"{number}.png")
        lines.append(f"a/{number}.png,{number % 2}")
    (tmp_path / "bright.csv").write_text("\n".join(lines))
    shards, out = tmp_path / "shards", tmp_path / "judge.safetensors"
    assert cdt("shard", "folder", tmp_path / "images", shards, "--attributes", tmp_path / "bright.csv")[0] == 0
    assert (
        cdt("classifier", shards, out, "--attribute", "bright", "--steps", "20", "--architecture", "residual")[0] == 0
    )
    judge = load_judge(out, (1, 8, 8))
    assert judge.labels == ("bright=0", "bright=1")
    shades = torch.tensor([-0.7, 0.5]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert judge.probabilities(shades).argmax(dim=1).tolist() == [0, 1]
    refused = cdt("classifier", shards, tmp_path / "b.safetensors", "--attribute", "brigt")
    assert refused == (2, "", f"cdt classifier: {shards} has no attribute 'brigt'; did you mean 'bright'?\n")


@pytest.mark.parametrize(
    ("out", "options", "told"),
    [
        ("x.pt", [], "OUT x.pt: the name must end in .safetensors"),
        ("no/x.safetensors", [], "OUT no/x.safetensors: no such directory: no"),
        ("there.safetensors", [], "OUT there.safetensors: it exists; name a new file"),
        ("x.safetensors", ["--split", "test"], "DATA has no split 'test'; it has train"),
        ("x.safetensors", ["--attribute", "male"], "DATA has no attribute 'male'; it has: none"),
    ],
)
def test_a_classifier_that_cannot_be_trained(
    out: str, options: list[str], told: str, home: Path, tmp_path: Path, cdt: Cdt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").touch()
    told = told.replace("DATA", str(home / "data"))
    assert cdt("classifier", home / "data", out, *options) == (2, "", f"cdt classifier: {told}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]


def test_every_verb_is_understood_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(VERBS.values()).parse_args(["--help"])
    told = capsys.readouterr().out
    assert set(re.findall(r"^    (\w+)", told, re.MULTILINE)) == set(VERBS)


def test_choices_on_the_command_line_are_those_of_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser(VERBS.values())
    for name in ARCHITECTURES:
        assert parse(parser, ["classifier", "a", "b", "--architecture", name]).architecture == name
    for name in SAMPLERS:
        assert parse(parser, ["sample", "run", "-o", "a.png", "--sampler", name]).sampler == name
    assert list(SOURCE_ARGUMENTS) == list(SOURCES)
    for wrong in (["classifier", "a", "b", "--architecture", "x"], ["sample", "a", "-o", "b", "--sampler", "x"]):
        with pytest.raises(SystemExit) as left:
            parse(parser, wrong)
        assert left.value.code == 2
        assert "invalid choice: 'x' (choose from " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sent", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_run_in_one_line_and_it_can_be_resumed(
    home: Path, cdt: Cdt, sent: signal.Signals, status: int, word: str
) -> None:
    run = home / "runs" / word

    def interrupt() -> None:
        while not (run / "checkpoints" / "step-000000004").is_dir():
            time.sleep(0.05)
        os.kill(os.getpid(), sent)

    # A shell that starts the tests in the background makes them deaf to Ctrl-C.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        ended, _, err = cdt("train", home / "tiny.yaml", f"run.name={word}", "train.dual_steps=1000000")
    finally:
        signal.signal(signal.SIGINT, heard)
    assert ended == status
    log = run / "events.jsonl"
    assert err == f"cdt train: {word}; continue with `cdt resume {run}`; the run's log is {log}\n"
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    assert cdt("resume", run, f"train.dual_steps={step}")[::2] == (0, "")
    assert cdt("resume", run)[0] == 2

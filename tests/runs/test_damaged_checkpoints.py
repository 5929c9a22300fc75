"""Checkpoints with a flipped bit or a missing file: found, reported, and passed over."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_runs import flip, rows, same_weights, sealed_again

from cdt.checkpoints.checkpoint import damage, newest_sound
from cdt.cli.command import main
from cdt.errors import CdtError, DamagedWarning, InputError, RunError
from cdt.origin.pretrained import open_pretrained
from cdt.runs.run import load
from cdt.runs.start import resume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


FILES = ["ema.safetensors", "weights.safetensors", "state.json", "engine/mp_rank_00_model_states.pt"]


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_found_wherever_it_is(whole: Path, file: str) -> None:
    newest = whole / "checkpoints" / "step-000000008"
    assert damage(newest) is None
    flip(newest / file)
    assert damage(newest) == f"{file}: contents differ from its manifest"


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(home: Path, whole: Path) -> None:
    checkpoints = whole / "checkpoints"
    flip(checkpoints / "step-000000008" / FILES[-1])
    (checkpoints / "step-000000006" / "state.json").unlink()
    assert newest_sound(checkpoints)[0] == checkpoints / "step-000000004"
    said: list[str] = []
    resume(whole, on_progress=lambda report: said.extend([report["said"]] if "said" in report else []))
    told = [row["text"] for row in rows(whole, "events.jsonl") if row["event"] == "damaged"]
    assert told == said
    assert [text.partition(":")[0] for text in told] == ["step-000000008 is damaged", "step-000000006 is damaged"]
    assert told[0].endswith("contents differ from its manifest; it is passed over, step-000000004 is taken")
    assert same_weights(whole, home / "whole")
    assert newest_sound(checkpoints) == (checkpoints / "step-000000008", [])


def test_a_run_does_not_begin_anew_because_all_its_checkpoints_are_damaged(whole: Path) -> None:
    for path in (whole / "checkpoints").iterdir():
        flip(path / "state.json")
    with pytest.raises(RunError, match=r"no checkpoint is intact; step-000000008 is damaged: state.json"):
        resume(whole)


def wrong_weights(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        weights = safetensors.torch.load_file(path)
        name = min(weights)
        if kind == "missing":
            del weights[name]
        else:
            other = {
                "surplus": weights[name],
                "another shape": weights[name].flatten()[:1].clone(),
                "another type": weights[name].to(torch.float64),
                "nan": weights[name] * float("nan"),
            }
            weights["surplus" if kind == "surplus" else name] = other[kind].clone()
        safetensors.torch.save_file(weights, path)

    return write


@pytest.mark.parametrize("kind", ["missing", "surplus", "another shape", "another type", "nan"])
def test_averages_that_do_not_fit_end_in_one_line_though_their_digest_is_right(whole: Path, kind: str) -> None:
    newest = whole / "checkpoints" / "step-000000008"
    wrong_weights(kind)(newest / "ema.safetensors")
    sealed_again(newest)
    for use in (lambda: load(whole).network(), lambda: resume(whole, ["train.dual_steps=8"])):
        with pytest.raises(CdtError) as caught:
            use()
        first = str(caught.value).splitlines()[0]
        assert "step-000000008" in first
        assert "Traceback" not in str(caught.value)
    with pytest.raises(InputError, match="init: "):
        open_pretrained(whole).build((1, 8, 8))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"\x80\x02." * 9),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "nothing in it": lambda path: torch.save({}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "a number": lambda path: torch.save({"module": 5, "optimizer_state_dict": 5}, path),
    "a program": lambda path: torch.save({"module": Path("/etc")}, path),
    "gone": lambda path: path.unlink(),
}


def test_a_file_of_deepspeed_that_the_manifest_does_not_list_is_damage(whole: Path) -> None:
    newest = whole / "checkpoints" / "step-000000008"
    (newest / "engine" / "more.pt").touch()
    assert damage(newest) == "engine/more.pt: not in its manifest"
    assert load(whole).state.step == 8, "who reads weights alone does not look there"


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("part", ["*model_states.pt", "*optim_states.pt"])
def test_files_of_deepspeed_that_hold_something_else_end_in_one_line(whole: Path, part: str, hostile: str) -> None:
    newest = whole / "checkpoints" / "step-000000008"
    for path in (newest / "engine").glob(part):
        HOSTILE[hostile](path)
    sealed_again(newest)
    with pytest.raises(CdtError) as caught:
        resume(whole, ["train.dual_steps=8"])
    said = str(caught.value)
    assert "step-000000008/engine cannot be loaded: " in said.splitlines()[0]
    assert "Traceback" not in said
    assert "weights_only" not in said


def test_a_program_says_what_it_took_instead(whole: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    newest = whole / "checkpoints" / "step-000000008"
    flip(newest / "ema.safetensors")
    with warnings.catch_warnings():
        assert main(["sample", str(whole), "-n", "2", "-o", str(tmp_path / "a.npz")]) == 0
        out, err = capsys.readouterr()
        assert err.startswith(f"cdt sample: {whole}: step-000000008 is damaged: ema.safetensors: contents differ")
        assert err.endswith("; it is passed over, step-000000006 is taken\n")
        assert out.startswith("2 samples of step-000000006: ")
        assert main(["sample", str(whole), "-n", "2", "-o", str(tmp_path / "b.npz"), "--no-check"]) == 0
        assert capsys.readouterr() == (f"2 samples of step-000000008: {tmp_path / 'b.npz'}\n", "")
        assert main(["sample", str(whole), "-o", str(tmp_path / "c.npz"), "--checkpoint", "8"]) == 2
        assert "step-000000008 is damaged: ema.safetensors: contents differ" in capsys.readouterr().err


def test_a_pretrained_run_is_taken_at_its_newest_intact_checkpoint(whole: Path) -> None:
    flip(whole / "checkpoints" / "step-000000008" / "ema.safetensors")
    with pytest.warns(DamagedWarning, match=r"step-000000008 is damaged: .* step-000000006 is taken"):
        assert open_pretrained(whole).pinned.name == "step-000000006"
    with pytest.raises(InputError, match=r"init: .*step-000000008 is damaged: ema\.safetensors: contents differ"):
        open_pretrained(whole / "checkpoints" / "step-000000008")
    for path in (whole / "checkpoints").iterdir():
        (path / "manifest.json").write_text("null")
    with pytest.raises(InputError, match=r"reference: .*no checkpoint is intact; .*; and 1 more"):
        open_pretrained(whole, "reference")

"""Stored answers of the teacher: what is asked, that it is asked once, what training makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ten_samples import CONFIG, SHAPE, answers_at

from cdt.data.read.reader import ImageReader, normalise
from cdt.data.stream import Batch
from cdt.diffusion.loss import Diffusion, predict_eps, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.errors import DamagedWarning, RunError
from cdt.origin.answers import Answers, StoredTeacher, drawn

DIFFUSION = Diffusion.from_config(CONFIG)
REPLAYED = torch.tensor([False, True])


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Answers]:
    """Answers of a tiny network at ten samples of its own."""
    return answers_at(tmp_path, monkeypatch)


def test_they_are_asked_once(make: Callable[[int], Answers]) -> None:
    heard: list[tuple[int, int]] = []
    make(3).ask(lambda done, total: heard.append((done, total)))
    assert heard == [(30, 30)]
    make(3).ask(lambda done, total: heard.append((done, total)))
    assert len(heard) == 1
    assert make(4).path != make(3).path
    path = make(3).path
    assert {found.name for found in path.parent.iterdir()} == {path.name, path.with_suffix(".sha256").name}


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 64]) + content[-4:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda content: content[:200], lambda content: b"", lambda content: b"\x93NUMPY"]
)
@pytest.mark.parametrize("digest", [True, False])
def test_damaged_answers_are_asked_again_aloud(
    make: Callable[[int], Answers], damage: Callable[[bytes], bytes], digest: bool
) -> None:
    """Those of earlier versions have no digest: there, only header and size can be compared."""
    answers = make(3)
    answers.ask()
    whole = answers.path.read_bytes()
    answers.path.write_bytes(damage(whole))
    if not digest:
        answers.path.with_suffix(".sha256").unlink()
    if digest or damage is not flipped:
        with pytest.warns(DamagedWarning, match=r"\.npy is damaged: .*; the teacher is asked again"):
            make(3).ask()
        assert answers.path.read_bytes() == whole
    make(3).ask()
    assert answers.path.with_suffix(".sha256").is_file()


def test_answers_to_other_questions_are_not_taken_for_them(make: Callable[[int], Answers]) -> None:
    """Their digest goes with them, and names another file. Of earlier versions it names none."""
    two, three = make(2), make(3)
    two.ask()
    three.ask()
    whole = three.path.read_bytes()
    for name in (two.path.name, ""):
        digest = three.path.with_suffix(".sha256")
        digest.write_text(f"{digest.read_text().split()[0]}  {name}\n")
        if name:
            with pytest.warns(DamagedWarning, match="the digest is of another file; the teacher is asked again"):
                make(3).ask()
        make(3).ask()
        assert three.path.read_bytes() == whole


def test_noise_levels_are_spread_over_the_draws_of_each_sample() -> None:
    u, eps = drawn(torch.arange(40), 4, SHAPE)
    assert torch.equal((u.reshape(10, 4) * 4).floor().sort().values, torch.arange(4.0).expand(10, 4))
    assert len({draw.numpy().tobytes() for draw in eps}) == 40


def test_training_gets_what_was_asked_and_what_was_answered(make: Callable[[int], Answers]) -> None:
    """Replay begins at row 5 here; the other samples, and one that had to be replaced, keep their noise."""
    answers = make(3)
    answers.ask()
    rows = torch.tensor([5, 2, 14, 7, -1])
    cells = torch.tensor([1, 0, 1, 1, 1])
    positions = torch.tensor([30, 31, 32, 33, 34])
    images = torch.zeros(5, *SHAPE)
    old = torch.tensor([0, 2, 3])
    replayed = ImageReader(answers.replay.index(), 0).images((rows[old] - 5).numpy())
    images[old] = torch.from_numpy(normalise(replayed))
    batch = Batch(images, positions, cells, cells, torch.ones(5), rows)
    u, eps = stratified(4, positions, 5), normals(4, positions, SHAPE)
    teacher = StoredTeacher(answers, REPLAYED, first=5)
    taught_u, taught_eps, target = teacher.lesson(batch, u, eps)

    new = torch.tensor([1, 4])
    assert torch.equal(taught_u[new], u[new])
    assert torch.equal(taught_eps[new], eps[new])
    assert not (taught_u[old] == u[old]).any()
    process, network = DIFFUSION.process, answers.origin.build(SHAPE)
    logsnr = process.logsnr_min + taught_u * (process.logsnr_max - process.logsnr_min)
    error = squared_error(network, process, images, logsnr, taught_eps, target=target)
    assert (error[old] < 1e-5).all()  # the teacher itself is told that it is right, but for float16
    assert (error[new] > 1e-3).all()
    assert teacher.time.take() > 0


def test_all_answers_come_up(make: Callable[[int], Answers]) -> None:
    answers = make(3)
    answers.ask()
    teacher = StoredTeacher(answers, REPLAYED, first=0)
    seen = set()
    for start in range(0, 300, 10):
        rows = torch.arange(10)
        positions = start + (rows + start // 10) % 10  # another place in each batch
        batch = Batch(torch.zeros(10, *SHAPE), positions, rows, torch.ones(10, dtype=torch.int64), rows.float(), rows)
        u, *_ = teacher.lesson(batch, torch.zeros(10), torch.zeros(10, *SHAPE))
        seen |= set(u.tolist())
    assert len(seen) == 30


def test_a_full_disk_leaves_nothing(make: Callable[[int], Answers], tmp_path: Path) -> None:
    (tmp_path / "cache" / "answers").write_text("")
    with pytest.raises(RunError, match="cannot write the teacher's answers"):
        make(3).ask()


def test_float16_is_fine_enough(make: Callable[[int], Answers]) -> None:
    answers = make(2)
    answers.ask()
    stored = np.load(answers.path)
    assert (stored.shape, stored.dtype) == ((20, *SHAPE), np.float16)
    images = normalise(ImageReader(answers.replay.index(), 0).images(np.arange(10).repeat(2)))
    u, eps = drawn(torch.arange(20), 2, SHAPE)
    process = DIFFUSION.process
    logsnr = process.logsnr_min + u * (process.logsnr_max - process.logsnr_min)
    a, s = (torch.sigmoid(sign * logsnr).sqrt()[:, None, None, None] for sign in (1, -1))
    with torch.no_grad():
        x = a * torch.from_numpy(images) + s * eps
        exact = predict_eps(answers.origin.build(SHAPE), process, x, logsnr, torch.float32)
    np.testing.assert_allclose(stored, exact, rtol=1e-3, atol=1e-3)

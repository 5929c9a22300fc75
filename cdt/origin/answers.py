"""The teacher's predictions at replayed samples, computed once at a few draws of noise per sample, and stored."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from cdt.condition import Condition, Conditions
from cdt.data.read.cache import cache_directory
from cdt.data.read.reader import ImageReader, normalise
from cdt.data.stream import Batch
from cdt.diffusion.loss import Target, predict_eps
from cdt.diffusion.noise import normals, stratified
from cdt.errors import DamagedWarning, RunError
from cdt.files import read_text, sha256, write_text, written_aside
from cdt.origin.pretrained import Pretrained
from cdt.origin.replay import Replay
from cdt.origin.teacher import Stopwatch

_KEY = 0x616E7377
_BATCH = 250


def drawn(questions: Tensor, draws: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """u [B] and eps [B, C, H, W] of questions [B]: row times ``draws``, plus which of that row's draws."""
    return stratified(_KEY, questions, draws), normals(_KEY, questions, shape)


@dataclass(frozen=True)
class Answers:
    """eps_pre at ``draws`` draws of each sample to train on, in float16: [rows * draws, C, H, W]."""

    origin: Pretrained
    replay: Replay
    draws: int
    conditions: Conditions | None = None
    """Those of the samples to train on, by their rows among them."""

    @cached_property
    def path(self) -> Path:
        """Named by a hash of all that they depend on; the replayed samples are there by now."""
        hasher = hashlib.sha256((self.replay.directory / "index.json").read_bytes())
        hasher.update(f"{self.origin.digest()}/{self.draws}".encode())
        if self.conditions is not None:
            hasher.update(self.conditions.fingerprint())
        return cache_directory() / "answers" / f"{hasher.hexdigest()[:32]}.npy"

    def ask(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Asks the teacher, unless that was done before; ``progress(done, total)`` per batch.

        Raises RunError when the disk refuses.
        """
        if self.path.is_file() and self._is_sound():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(self.path, unique=True) as aside, aside.open("wb") as file:
                self._ask(file, progress)
            self._write_digest()
        except OSError as error:
            raise RunError(f"cannot write the teacher's answers to {self.path}: {error.strerror}") from error

    def _is_sound(self) -> bool:
        """Whether the stored answers are what was stored; a DamagedWarning if not, as they are asked again then.

        Those of earlier versions have no digest. They get one if their header and size are right.
        """
        problem = "its contents differ from their digest, or the digest is of another file"
        if self._digest_file.is_file():
            digest, *name = read_text(self._digest_file, 1000).split() or [""]
            sound = digest == sha256(self.path) and name in ([], [self.path.name])  # earlier versions wrote no name
        else:
            problem, sound = "it is no array of the answers' shape", self._has_shape()
            if sound:
                self._write_digest()
        if not sound:
            warnings.warn(
                f"{self.path} is damaged: {problem}; the teacher is asked again", DamagedWarning, stacklevel=2
            )
        return sound

    @property
    def _digest_file(self) -> Path:
        return self.path.with_suffix(".sha256")

    def _write_digest(self) -> None:
        write_text(self._digest_file, f"{sha256(self.path)}  {self.path.name}\n")

    def _has_shape(self) -> bool:
        index = self.replay.index()
        try:
            stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return stored.dtype == "<f2" and stored.shape == (index.count * self.draws, *index.shape)

    @torch.no_grad()
    def _ask(self, file: BinaryIO, progress: Callable[[int, int], None]) -> None:
        index, process = self.replay.index(), self.origin.process
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network, reader = self.origin.build(index.shape).to(device), ImageReader(index, cache_mb=0)
        total = index.count * self.draws
        header = {"descr": "<f2", "fortran_order": False, "shape": (total, *index.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for questions in torch.arange(total, device=device).split(_BATCH):
            # The answer for a damaged image has no meaning; training never reads it.
            rows = (questions // self.draws).cpu().numpy()
            images, _ = reader.usable(rows)
            u, eps = drawn(questions, self.draws, index.shape)
            logsnr = process.level(u)
            x = process.noised(torch.as_tensor(normalise(images), device=device), logsnr, eps)
            predicted = predict_eps(network, process, x, logsnr, condition=self._condition(rows, device))
            file.write(predicted.cpu().numpy().astype("<f2").tobytes())
            progress(int(questions[-1]) + 1, total)

    def _condition(self, rows: np.ndarray, device: str) -> Condition | None:
        return None if self.conditions is None else self.conditions.of(rows).to(torch.device(device))


class StoredTeacher:
    """Takes the place of a ``Teacher``: replayed samples get noise that it was asked at, and what it answered."""

    def __init__(self, answers: Answers, replayed: Tensor, first: int) -> None:
        """``replayed`` [K]: which cells are replay, whose rows begin at ``first``."""
        self._stored = np.load(answers.path, mmap_mode="r")
        self._draws, self._replayed, self._first = answers.draws, replayed, first
        self.time = Stopwatch(replayed.device)

    def lesson(self, batch: Batch, u: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Target]:
        """Noise levels u [B] and noise [B, C, H, W] to train ``batch`` at, and the target."""
        with self.time.running():
            chosen = (self._replayed[batch.cells] & (batch.rows >= 0)).nonzero().flatten()
            which = batch.positions[chosen] % self._draws  # rows are permuted, so every draw is used
            questions = (batch.rows[chosen] - self._first) * self._draws + which
            asked_u, asked_eps = drawn(questions, self._draws, tuple(eps.shape[1:]))
            answers = torch.as_tensor(self._stored[questions.cpu().numpy()], device=eps.device).float()
            u, eps = u.index_copy(0, chosen, asked_u), eps.index_copy(0, chosen, asked_eps)
        return u, eps, lambda x, logsnr, eps: eps.index_copy(0, chosen, answers)

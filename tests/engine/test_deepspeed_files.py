"""What DeepSpeed reads is data and is never executed; nobody else's ``torch.load`` changes."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cdt.cluster.session import set_environment
from cdt.engine import deepspeed_private
from cdt.engine.deepspeed_files import captured, data_only, load_data_only
from cdt.engine.host_copies import Copies

pytestmark = pytest.mark.filterwarnings("ignore")  # DeepSpeed's own, on import


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self._path,)


@pytest.fixture
def readers() -> list[Any]:
    """DeepSpeed's modules that read checkpoints."""
    set_environment()
    return deepspeed_private.readers()


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    path = tmp_path / "trapped.pt"
    torch.save({"trap": Trap(tmp_path / "executed")}, path)
    return path


def test_tensors_are_read_and_anything_else_is_refused(trapped: Path, tmp_path: Path, readers: list[Any]) -> None:
    torch.save({"x": torch.arange(3)}, tmp_path / "data.pt")
    assert load_data_only(tmp_path / "data.pt")["x"].tolist() == [0, 1, 2]
    with pytest.raises(pickle.UnpicklingError):
        load_data_only(trapped, weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_deepspeed_does_not_execute_what_it_reads(trapped: Path, tmp_path: Path, readers: list[Any]) -> None:
    with data_only():
        for module in readers:
            with pytest.raises(pickle.UnpicklingError):
                module.torch.load(trapped, map_location="cpu", weights_only=False)
            assert module.torch.float32 is torch.float32
    assert not (tmp_path / "executed").exists()
    assert all(module.torch is torch for module in readers)


def test_an_error_inside_puts_torch_back(readers: list[Any]) -> None:
    with pytest.raises(KeyError), data_only():
        raise KeyError
    assert all(module.torch is torch for module in readers)


def test_another_threads_load_is_untouched_meanwhile(trapped: Path, tmp_path: Path, readers: list[Any]) -> None:
    before = torch.load
    with ThreadPoolExecutor(1) as other, data_only():
        other.submit(lambda: torch.load(trapped, weights_only=False)).result(60)
        assert torch.load is before
    assert (tmp_path / "executed").exists(), "who asks torch itself gets what torch does"


def test_two_threads_take_turns(trapped: Path, readers: list[Any]) -> None:
    """The first to leave must not end it for the second."""
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with data_only():
            entered.set()
            leave.wait(60)

    def second() -> bool:
        with data_only():
            return readers[0].torch.load is load_data_only

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first)
        assert entered.wait(60)
        two = threads.submit(second)
        leave.set()
        one.result(60)
        assert two.result(60)
    assert readers[0].torch is torch


class Writer:
    """DeepSpeed's checkpoint engine, as far as a save goes."""

    def __init__(self) -> None:
        self.checkpoint_engine = self
        self.written: dict[str, Any] = {}

    def save(self, state_dict: Any, path: str) -> None:
        if path.endswith("refused"):
            raise RuntimeError("unexpected pos")
        self.written[path] = state_dict


def test_what_is_saved_is_copied_and_written_later() -> None:
    network, tensor = Writer(), torch.zeros(2)
    with captured(network, Copies()) as writes:
        network.checkpoint_engine.save({"x": tensor}, "folder/part")
        network.checkpoint_engine.save({"y": 1}, "folder/refused")
    tensor += 1
    assert network.written == {}
    first, refused = writes
    assert first() == Path("folder/part")
    assert network.written["folder/part"]["x"].tolist() == [0, 0]
    with pytest.raises(OSError, match=r"folder/refused could not be written, perhaps the disk is full"):
        refused()
    network.checkpoint_engine.save({}, "afterwards")
    assert "afterwards" in network.written

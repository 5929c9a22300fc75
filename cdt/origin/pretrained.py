"""Where fine-tuning begins: the network, process and EMA weights of a run, or of a pipeline that diffusers saved."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor, nn

from cdt import filenames
from cdt.checkpoints.checkpoint import CHECKPOINT, complete_checkpoints, network_weights, open_checkpoint, sound
from cdt.checkpoints.manifest import EMA
from cdt.data.facts import read_facts
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process
from cdt.diffusion.processes import make_process
from cdt.diffusion.schedulers import SETTINGS, read_scheduler
from cdt.errors import InputError, RunError, at
from cdt.files import sha256
from cdt.networks.build import build_network
from cdt.networks.config import NetworkConfig, PretrainedConfig
from cdt.networks.pretrained import find_unet
from cdt.settings import load_yaml, parse


class _Origin(BaseModel):
    """The parts of a run's configuration that are needed here."""

    network: NetworkConfig
    diffusion: DiffusionConfig


@dataclass(frozen=True)
class Pretrained:
    """A model that was trained before, opened."""

    directory: Path
    network: NetworkConfig
    diffusion: DiffusionConfig
    checkpoint: Path | None
    """The file of a run's weights; None: building the network of a pipeline loads them."""
    setting: str = "init"
    """The setting that names it, for messages."""

    @property
    def pinned(self) -> Path:
        """What ``open_pretrained`` opens in the same way when the run has gone on meanwhile."""
        return self.checkpoint or self.directory

    @property
    def process(self) -> Process:
        return make_process(self.diffusion)

    def check_images(self, shape: tuple[int, int, int], dtype: str) -> None:
        """Raises InputError when it was trained on images of another shape [C, H, W] or type."""
        if self.checkpoint is None:
            return  # the network of a pipeline says so itself when it is built
        with at(self.setting):
            theirs = read_facts(self.directory / filenames.DATA)
        if (tuple(theirs["shape"]), theirs["dtype"]) != (tuple(shape), dtype):
            raise InputError(
                f"{self.setting}: {self.directory} was trained on images of shape {list(theirs['shape'])} "
                f"({theirs['dtype']}), the data have {list(shape)} ({dtype})"
            )

    def weights(self) -> dict[str, Tensor] | None:
        """The EMA weights by name, where building the network does not load them. Raises InputError."""
        if self.checkpoint is None:
            return None
        with at(self.setting):
            return network_weights(self.checkpoint)

    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        """The network with its weights, frozen, in evaluation mode. Raises InputError where it does not fit."""
        network = build_network(self.network, shape)
        if (weights := self.weights()) is not None:
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                raise InputError(
                    f"{self.setting}: the weights in {self.checkpoint} are not those of its network for images of "
                    f"shape {list(shape)}"
                ) from error
        return network.eval().requires_grad_(False)

    def digest(self) -> str:
        """Of all that its samples depend on: weights, network, process."""
        return self._digest(self.process.fingerprint())

    def has_digest(self, digest: str) -> bool:
        """Whether ``digest`` is the digest of this model, also as earlier versions computed it."""
        return digest == self.digest() or any(digest == self._digest(f) for f in self.process.earlier_fingerprints)

    def _digest(self, fingerprint: bytes) -> str:
        hasher = hashlib.sha256(fingerprint)
        if self.checkpoint is not None:
            files = [self.checkpoint / EMA]
            hasher.update(self.network.model_dump_json().encode())
        else:
            files = sorted(p for p in find_unet(self.directory).iterdir() if p.suffix in (".json", ".safetensors"))
        for path in files:
            hasher.update(bytes.fromhex(sha256(path)))
        return hasher.hexdigest()


def open_pretrained(directory: Path, setting: str = "init", *, check: bool = True) -> Pretrained:
    """``directory``: a run, of which the newest checkpoint is taken; one of its checkpoints; a pipeline of diffusers.

    A damaged newest checkpoint is passed over with a DamagedWarning. ``check``: whether weights of a run are compared
    with their digests; ranks do not, since the driver did.

    Raises InputError when it is none of these, or a checkpoint that is named, or each of a run's, is damaged.
    """
    if not directory.is_dir():
        raise InputError(f"{setting}: no such directory: {directory}")
    chosen = (
        directory
        if re.fullmatch(CHECKPOINT, directory.name) and directory.parent.name == filenames.CHECKPOINTS
        else None
    )
    if chosen is not None:
        directory = directory.parent.parent
    if (directory / filenames.CONFIG).is_file():
        tree = load_yaml(directory / filenames.CONFIG, resolved=True)
        origin = parse(_Origin, tree, where=f"{setting}: {directory / 'config.yaml'}")
        checkpoint = _checkpoint_of(directory / filenames.CHECKPOINTS, chosen, setting, check=check)
        return Pretrained(directory, origin.network, origin.diffusion, checkpoint, setting)
    for part in ("unet/config.json", f"scheduler/{SETTINGS}"):
        if not (directory / part).is_file():
            raise InputError(
                f"{setting}: {directory} is neither a run (no config.yaml) nor a pipeline of diffusers (no {part})"
            )
    network = PretrainedConfig(path=directory.resolve())
    return Pretrained(directory, network, read_scheduler(directory / "scheduler"), None, setting)


def _checkpoint_of(checkpoints: Path, chosen: Path | None, setting: str, *, check: bool) -> Path:
    try:
        if chosen is None:
            return open_checkpoint(checkpoints, check=check).path
        if not chosen.is_dir():
            there = ", ".join(path.name for path in complete_checkpoints(checkpoints)) or "none"
            raise InputError(f"{chosen} is not there; there are {there}")
        return sound(chosen, (EMA,) if check else ()).path
    except (InputError, RunError) as error:
        raise InputError(f"{setting}: {error}") from error


def check_continued(origin: Pretrained, network: NetworkConfig, diffusion: DiffusionConfig) -> None:
    """Raises InputError where a configuration contradicts the pretrained model that it starts from."""
    if network != origin.network:
        raise InputError(f"network: it differs from that of {origin.directory}, whose weights are to go on; drop it")
    ours, theirs = make_process(diffusion), origin.process
    if ours.prediction != theirs.prediction:
        raise InputError(
            f"diffusion.prediction: {origin.directory} predicts {theirs.prediction}, and its weights are to go on: "
            "drop it"
        )
    if not ours.same_path(theirs):
        raise InputError(f"diffusion: the schedule differs from that of {origin.directory}; drop it")

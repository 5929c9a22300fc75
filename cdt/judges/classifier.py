"""The judge that cdt trains: a small convolutional classifier of real images, and how it is stored.

The Fréchet distance is measured in its features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdt.errors import InputError, RunError
from cdt.files import open_regular, read_bytes, written_aside
from cdt.judges.judge import Labels, in_batches
from cdt.judges.networks import ClassifierNetwork
from cdt.records import LIMIT, parsed
from cdt.schema import Config

SUFFIX = ".safetensors"
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # in a directory: our name, diffusers' name
CLASS_NAME = "Classifier"
MAX_SIDE, MOST = 1 << 20, 10**12
"""Of an image, and of held-out images: what no file of ours exceeds."""
Side = Annotated[int, Field(ge=4, le=MAX_SIDE)]


class Description(Config):
    """What is stored of a classifier besides its weights."""

    architecture: str
    shape: tuple[Annotated[int, Field(ge=1, le=MAX_SIDE)], Side, Side]
    labels: Labels
    held_out_correct: tuple[Annotated[int, Field(ge=0, le=MOST)], ...]
    held_out_count: tuple[Annotated[int, Field(ge=1, le=MOST)], ...]

    @model_validator(mode="after")
    def _counts_of_every_label(self) -> Description:
        if not len(self.held_out_correct) == len(self.held_out_count) == len(self.labels):
            raise ValueError("labels and held-out counts differ in number")
        return self


@dataclass(frozen=True)
class Classifier:
    """A trained judge and its results on held-out images (counts per label, [K])."""

    network: ClassifierNetwork
    labels: tuple[str, ...]
    held_out_correct: tuple[int, ...]
    held_out_count: tuple[int, ...]

    @property
    def recalls(self) -> tuple[float, ...]:
        """Share of each label's held-out images that was recognised, [K]."""
        return tuple(right / n for right, n in zip(self.held_out_correct, self.held_out_count, strict=True))

    @property
    def accuracy(self) -> float:
        """Share of held-out images recognised, averaged over the labels: 0 to 1.

        Rare classes count as much as frequent ones: the judged samples do not have the data's shares.
        """
        return sum(self.recalls) / len(self.recalls)

    def probabilities(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Probabilities [N, K] of images [N, C, H, W] in [-1, 1]; InputError if they have another shape."""
        return self._in_batches(lambda batch: self.network(batch).softmax(dim=1), images, batch_size)

    def features(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Features [N, d] of images [N, C, H, W] in [-1, 1]; InputError if they have another shape."""
        return self._in_batches(self.network.features, images, batch_size)

    def save(self, path: Path) -> None:
        """Writes FILE.safetensors with the description in its header, or a directory of config.json and weights.

        A file replaces one of the same name; a directory must be new or empty. RunError if it cannot be written.
        """
        description = Description(
            architecture=self.network.architecture,
            shape=self.network.shape,
            labels=self.labels,
            held_out_correct=self.held_out_correct,
            held_out_count=self.held_out_count,
        )
        weights = self.network.state_dict()
        try:
            with written_aside(path) as aside:
                if path.suffix == SUFFIX:
                    save_file(weights, aside, metadata={"classifier": description.model_dump_json()})
                else:
                    aside.mkdir()
                    config = {"_class_name": CLASS_NAME} | description.model_dump()
                    (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                    save_file(weights, aside / WEIGHTS[0])
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path}: the classifier could not be written: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Reads what ``save`` wrote, file or directory; InputError if it is missing."""
        try:
            text, weights = _read_directory(path) if path.is_dir() else _read_file(path)
            description = Description.model_validate_json(text)
            network = ClassifierNetwork(description.architecture, description.shape, len(description.labels))
            network.load_state_dict(weights)
            _check_values(weights, network)
        except FileNotFoundError as error:
            raise InputError(f"{error.filename or path}: no such file; expected a classifier of cdt") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its description"
            raise InputError(f"{path}: not a classifier of cdt: {where}: {first['msg']}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise InputError(f"{path}: not a classifier of cdt ({reason})") from error
        return cls(network.eval(), description.labels, description.held_out_correct, description.held_out_count)

    def _in_batches(self, function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
        device = self.network.head.weight.device
        return in_batches(function, images, self.network.shape, device=device, batch_size=batch_size)


def _read_file(path: Path) -> tuple[str, dict[str, Tensor]]:
    open_regular(path).close()  # else a pipe would be waited for
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("classifier")
        if text is None:
            raise InputError("not a classifier of cdt: its header holds no description")
        return text, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _read_directory(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The description, without the keys that diffusers adds to its own, and the weights."""
    settings = parsed(read_bytes(path / "config.json", LIMIT), TypeAdapter(Any), "config.json cannot be read")
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    if name != CLASS_NAME:
        raise InputError(
            f"config.json names the class {name!r}; of directories only a {CLASS_NAME!r} of cdt can be loaded: "
            "give another network as TorchScript (.pt, .ts)"
        )
    file = weights_in(path)
    open_regular(file).close()
    text = json.dumps({key: value for key, value in settings.items() if not key.startswith("_")})
    return text, load_file(file)


def weights_in(directory: Path) -> Path:
    """The file with the weights in a directory of a classifier."""
    return next((directory / name for name in WEIGHTS if (directory / name).is_file()), directory / WEIGHTS[0])


def _check_values(weights: dict[str, Tensor], network: ClassifierNetwork) -> None:
    """Raises InputError for values that ``load_state_dict`` takes as they are, or rounds."""
    for name, own in network.state_dict().items():
        if weights[name].dtype != own.dtype:
            raise InputError(f"not a classifier of cdt: {name} is {weights[name].dtype}, not {own.dtype}")
        if not own.isfinite().all():
            raise InputError(f"the classifier cannot be used: {name} has values that are not finite")

"""The judge: a small convolutional classifier that says which class a generated image shows.

It is trained on real images and knows nothing of the generator. Its features are what the Fréchet distance is taken in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from cdt.errors import InputError, RunError

HELD_OUT = 8  # every eighth image of a class is kept from training
WIDTHS = (32, 64, 128)  # channels at the first, second and all later resolutions


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with pre-activation around an identity or projected skip (arXiv 1603.05027)."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1)
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes_shape = stride > 1 or channels != out_channels
        self.skip = nn.Conv2d(channels, out_channels, 1, stride) if changes_shape else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return self.skip(x) + self.conv2(silu(self.norm2(h)))


class FeatureNetwork(nn.Module):
    """Images [B, C, H, W] to features [B, d]: strided residual blocks down to 4 to 7 pixels, then the spatial mean.

    The stem's stride grows with the image, so that no image costs more than one of 64 to 127 pixels.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = shape
        stride = max(1, min(sides) // 64)
        size, stage = min(sides) // stride, 0
        blocks: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], 2 * stride + 1, stride, padding=stride)]
        while size >= 8:
            width = WIDTHS[min(stage + 1, 2)]
            blocks.append(ResidualBlock(WIDTHS[min(stage, 2)], width, stride=2))
            size, stage = size // 2, stage + 1
        width = WIDTHS[min(stage, 2)]
        blocks += [ResidualBlock(width, width, stride=1), nn.GroupNorm(8, width), nn.SiLU()]
        self.map = nn.Sequential(*blocks)
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images).mean(dim=(2, 3))


class JudgeNetwork(nn.Module):
    """Images [B, C, H, W] to logits [B, K]."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.shape, self.num_classes = shape, num_classes
        self.features = FeatureNetwork(shape)
        self.head = nn.Linear(self.features.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@dataclass(frozen=True)
class Classifier:
    """A trained judge and what it achieved on the images kept from its training (counts per class, [K])."""

    network: JudgeNetwork
    held_out_correct: tuple[int, ...]
    held_out_count: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of held-out images recognised, averaged over the classes: 0 to 1.

        Rare classes weigh as much as frequent ones: the shares that are judged are not the data's.
        """
        recalls = [right / n for right, n in zip(self.held_out_correct, self.held_out_count, strict=True) if n]
        return sum(recalls) / len(recalls)

    def probabilities(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Class probabilities [N, K] of images [N, C, H, W] in [-1, 1]; InputError if they have another shape."""
        return self._in_batches(lambda batch: self.network(batch).softmax(dim=1), images, batch_size)

    def features(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Features [N, d] of images [N, C, H, W] in [-1, 1]; InputError if they have another shape."""
        return self._in_batches(self.network.features, images, batch_size)

    def save(self, path: Path) -> None:
        """Writes one safetensors file whose header holds the rest as JSON; RunError if it cannot be written."""
        facts = {
            "shape": self.network.shape,
            "held_out_correct": self.held_out_correct,
            "held_out_count": self.held_out_count,
        }
        temporary = path.with_name(path.name + ".tmp")
        try:
            save_file(self.network.state_dict(), temporary, metadata={"judge": json.dumps(facts)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"{path}: the judge could not be written: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Reads what ``save`` wrote; InputError if there is no such file or it holds no judge."""
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["judge"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            correct, count = tuple(facts["held_out_correct"]), tuple(facts["held_out_count"])
            network = JudgeNetwork(tuple(facts["shape"]), len(count))
            network.load_state_dict(weights)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; expected a judge written by Classifier.save") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not a judge written by Classifier.save ({error})") from error
        return cls(network.eval(), correct, count)

    def _in_batches(self, function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
        if images.shape[1:] != self.network.shape:
            raise InputError(f"the judge reads images of shape {self.network.shape}, not {tuple(images.shape[1:])}")
        device = self.network.head.weight.device
        with torch.inference_mode():
            return torch.cat([function(batch.to(device)).cpu() for batch in images.split(batch_size)])


def train_classifier(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int,
    steps: int = 320,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Trains a judge on images [N, C, H, W] in [-1, 1] with labels [N]; a function of its arguments alone.

    Classes are drawn equally often whatever their counts: the shares of the samples to judge are unknown, so the judge
    must not prefer the data's. (Equal draws rather than weighted losses: weights of rare classes make gradients noisy.)
    Augmentation is by shifts only; a mirrored digit is no digit. An eighth of each class is held out.

    The default length suits a few thousand small images; give ten times the steps for tens of thousands.

    Raises InputError for images smaller than 4 pixels, fewer than two classes, labels out of range, and classes with
    fewer than two images.
    """
    _check(images, labels, num_classes)
    generator = torch.Generator().manual_seed(seed)
    held_out = stratified_held_out(labels, num_classes, generator)
    train_images, train_labels = images[~held_out], labels[~held_out]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = JudgeNetwork((images.shape[1], images.shape[2], images.shape[3]), num_classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    draw_weights = 1 / train_labels.bincount(minlength=num_classes)[train_labels].float()
    for _ in range(steps):
        batch = torch.multinomial(draw_weights, batch_size, replacement=True, generator=generator)
        shifted = random_shift(train_images[batch], generator)
        loss = cross_entropy(network(shifted.to(device)), train_labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    count = labels[held_out].bincount(minlength=num_classes)
    judge = Classifier(network.eval(), (), tuple(count.tolist()))
    right = judge.probabilities(images[held_out]).argmax(dim=1) == labels[held_out]
    correct = labels[held_out][right].bincount(minlength=num_classes)
    return Classifier(network, tuple(correct.tolist()), tuple(count.tolist()))


def stratified_held_out(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Mask [N] of the held-out images: an eighth of each class, at least one."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(num_classes):
        members = (labels == c).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[: max(1, len(members) // HELD_OUT)]]] = True
    return held_out


def random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to a twelfth of its size (at least a pixel) both ways; edges are repeated."""
    B, C, H, W = images.shape
    rows, columns = (
        (torch.arange(size) + torch.randint(-reach, reach + 1, (B, 1), generator=generator)).clamp(0, size - 1)
        for size, reach in ((H, max(1, H // 12)), (W, max(1, W // 12)))
    )
    b, c = torch.arange(B).view(B, 1, 1, 1), torch.arange(C).view(1, C, 1, 1)
    return images[b, c, rows.view(B, 1, H, 1), columns.view(B, 1, 1, W)]


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.ndim != 4 or min(images.shape[2:]) < 4 or len(images) != len(labels):
        raise InputError(
            "a judge needs images [N, C, H, W] of at least 4x4 pixels and one label each, "
            f"not images {list(images.shape)} and labels {list(labels.shape)}"
        )
    if num_classes < 2:
        raise InputError(f"a judge tells classes apart: it needs at least 2, the data has {num_classes}")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise InputError(f"labels run from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    scarce = (labels.bincount(minlength=num_classes) < 2).nonzero().flatten().tolist()
    if scarce:
        raise InputError(f"a judge needs at least 2 images of each class; too few of class {scarce}")

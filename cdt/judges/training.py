"""Training a classifier on real images: seconds for a few thousand small ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cdt.errors import InputError
from cdt.judges.classifier import Classifier
from cdt.judges.networks import ClassifierNetwork
from cdt.spelling import first_few

HELD_OUT = 8  # every eighth image of a class is kept from training


def train_classifier(
    images: Tensor,
    targets: Tensor,
    labels: Sequence[str],
    *,
    architecture: str,
    seed: int,
    steps: int = 320,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Trains a judge on images [N, C, H, W] in [-1, 1] that show ``labels[targets]`` [N]; a function of its arguments.

    ``architecture`` is a key of ARCHITECTURES.

    Classes are drawn equally often whatever their counts: the shares of the samples to judge are unknown, so the judge
    must not prefer those of the data. (Equal draws, not weighted losses: weights of rare classes make gradients noisy.)
    Augmentation is by shifts only; a flipped digit is not a digit. An eighth of each class is held out.

    The default length suits a few thousand small images; use ten times the steps for tens of thousands.

    Raises InputError for an unknown architecture, images smaller than 4 pixels, fewer than two labels, targets out of
    range, and labels with fewer than two images.
    """
    _check(images, targets, labels)
    K = len(labels)
    generator = torch.Generator().manual_seed(seed)
    held_out = stratified_held_out(targets, K, generator)
    train_images, train_targets = images[~held_out], targets[~held_out]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = images.shape[1], images.shape[2], images.shape[3]
        network = ClassifierNetwork(architecture, shape, K).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    draw_weights = 1 / train_targets.bincount(minlength=K)[train_targets].float()
    for _ in range(steps):
        batch = torch.multinomial(draw_weights, batch_size, replacement=True, generator=generator)
        shifted = random_shift(train_images[batch], generator)
        loss = cross_entropy(network(shifted.to(device)), train_targets[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    count = targets[held_out].bincount(minlength=K)
    judge = Classifier(network.eval(), tuple(labels), (), tuple(count.tolist()))
    right = judge.probabilities(images[held_out]).argmax(dim=1) == targets[held_out]
    correct = targets[held_out][right].bincount(minlength=K)
    return Classifier(network, tuple(labels), tuple(correct.tolist()), tuple(count.tolist()))


def stratified_held_out(targets: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Mask [N] of the held-out images: an eighth of each class, at least one."""
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    for c in range(num_classes):
        members = (targets == c).nonzero().flatten()
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


def _check(images: Tensor, targets: Tensor, labels: Sequence[str]) -> None:
    if images.ndim != 4 or min(images.shape[2:]) < 4 or len(images) != len(targets):
        raise InputError(
            "a judge needs images [N, C, H, W] of at least 4x4 pixels and one target each, "
            f"not images {list(images.shape)} and targets {list(targets.shape)}"
        )
    if len(labels) < 2:
        raise InputError(f"a judge distinguishes labels: it needs at least 2, the data has {len(labels)}")
    if int(targets.min()) < 0 or int(targets.max()) >= len(labels):
        raise InputError(f"targets run from {targets.min()} to {targets.max()}, expected 0 to {len(labels) - 1}")
    counts = targets.bincount(minlength=len(labels)).tolist()
    scarce = [label for label, count in zip(labels, counts, strict=True) if count < 2]
    if scarce:
        raise InputError(f"a judge needs at least 2 images of each label; too few of {first_few(scarce, 5)}")

"""The classifier's networks. One steers a model and another evaluates it, because their errors differ."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from cdt.errors import InputError

WIDTHS = (32, 64, 128)  # channels at the first, second and all later resolutions
PLAIN_WIDTHS = (24, 48, 96)


class Features(nn.Module):
    """Images [B, C, H, W] to features [B, d] by way of a map of 4 to 7 pixels at the shorter side.

    The first layer's stride grows with the image, so that no image costs more than one of 64 to 127 pixels.
    """

    map: nn.Sequential
    num_features: int


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


class ResidualFeatures(Features):
    """Strided residual blocks, then the spatial mean."""

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


class PlainFeatures(Features):
    """Convolutions in a row with max-pooling between them, then all pixels of the map (VGG, arXiv 1409.1556).

    Normalised by groups of channels, so that the result for an image does not depend on its batch.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = shape
        stride = max(1, min(sides) // 64)
        height, width = (side // stride for side in sides)
        layers: list[nn.Module] = [nn.AvgPool2d(stride)]
        stage = 0
        layers += _convolution(channels, PLAIN_WIDTHS[0])
        while min(height, width) >= 8:
            layers += _convolution(PLAIN_WIDTHS[min(stage, 2)], PLAIN_WIDTHS[min(stage + 1, 2)])
            layers.append(nn.MaxPool2d(2))
            height, width, stage = height // 2, width // 2, stage + 1
        last = PLAIN_WIDTHS[min(stage, 2)]
        self.map = nn.Sequential(*layers, *_convolution(last, last))
        self.num_features = last * height * width

    def forward(self, images: Tensor) -> Tensor:
        # With the spatial mean instead, 1 to 2 % fewer of the held-out digits are recognised.
        return self.map(images).flatten(start_dim=1)


def _convolution(channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out_channels, 3, padding=1), nn.GroupNorm(8, out_channels), nn.ReLU()]


ARCHITECTURES: dict[str, type[Features]] = {"residual": ResidualFeatures, "plain": PlainFeatures}
"""``cdt evaluate`` uses ``residual``; ``plain`` is for constraints on generated samples."""


class ClassifierNetwork(nn.Module):
    """Images [B, C, H, W] to logits [B, K]; InputError for an unknown architecture."""

    def __init__(self, architecture: str, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise InputError(f"no architecture {architecture!r} of classifiers; known are: {', '.join(ARCHITECTURES)}")
        self.architecture, self.shape = architecture, shape
        self.features = ARCHITECTURES[architecture](shape)
        self.head = nn.Linear(self.features.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

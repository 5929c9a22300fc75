"""docs/window.png: what a constraint's window sees, on scikit-learn's digits.

python tools/plot_window.py        # needs matplotlib: pip install --group plots
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]
import numpy as np

from cdt.constraints.window import SEPARATED, auto_window, posterior_cross_entropy
from cdt.data.sources import SOURCES

OUT = Path(__file__).parent.parent / "docs" / "window.png"
SHARES = (0.0138, 0.1)
DRAWS = 1024


def main() -> None:
    source = SOURCES["digits"]()
    images = np.stack([source[i].image for i in range(len(source.classes))]).astype(np.float64) / 127.5 - 1
    levels = np.arange(-10, 6.01, 0.25)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for c, colour in ((4, "tab:blue"), (5, "tab:orange"), (8, "tab:green")):
        inside, outside = images[source.classes == c], images[source.classes != c]
        for share, style in zip(SHARES, ("-", "--"), strict=True):
            left.plot(
                levels, credit(inside, outside, share, levels), style, color=colour, label=f"{c}, share {share:g}"
            )
            left.axvline(auto_window(inside, outside, share, -10, 10, 0), color=colour, linestyle=style, alpha=0.3)
    for k, colour in ((1, "tab:blue"), (2, "tab:purple"), (4, "tab:red")):
        inside, outside = (enlarged(images[source.classes == 4 if own else source.classes != 4], k) for own in (1, 0))
        right.plot(levels, credit(inside, outside, SHARES[0], levels), color=colour, label=f"{8 * k}x{8 * k}")
        right.axvline(auto_window(inside, outside, SHARES[0], -10, 10, 0), color=colour, alpha=0.3)
    left.set(xlabel="upper end of the window, log-SNR", ylabel="share of log(1/f) that the window sees")
    right.set(xlabel="upper end of the window, log-SNR", title="class 4, enlarged without new detail")
    left.set_title(f"three classes; vertical lines: window auto ({SEPARATED} nats missing)")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUT, dpi=110)


def credit(inside: np.ndarray, outside: np.ndarray, share: float, levels: np.ndarray) -> np.ndarray:
    """``1 - E[-log p(i | x)] / log(1 / f)`` at each level [L]."""
    flat = [images.reshape(len(images), -1) for images in (inside, outside)]
    eps = np.random.default_rng(0).standard_normal((DRAWS, flat[0].shape[1]))
    return 1 - posterior_cross_entropy(flat[0], flat[1], share, levels, eps) / np.log(1 / share)


def enlarged(images: np.ndarray, k: int) -> np.ndarray:
    return images.repeat(k, axis=2).repeat(k, axis=3)


if __name__ == "__main__":
    main()

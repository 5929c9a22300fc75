"""docs/fairness.png: what tools/bench/fairness.py found, every seed a point.

python tools/plot_fairness.py OUT/digits OUT/idx        # needs matplotlib: pip install --group plots
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

OUT = Path(__file__).parent.parent / "docs" / "fairness.png"
ARMS = {"unconstrained": "tab:gray", "fixed lambda*": "tab:blue", "dual, generated": "tab:red"}
SETTINGS = ("any", "ten")
TITLES = {"digits": "digits 8x8", "idx": "MNIST 16x16"}
FLOOR = 0.09


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="with a results.jsonl each")
    folders = parser.parse_args().folders
    figure, axes = plt.subplots(
        len(folders), 3, figsize=(12, 3.2 * len(folders)), squeeze=False, width_ratios=(3, 1, 1)
    )
    for (shares, tv, frechet), folder in zip(axes, folders, strict=True):
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["setting"] in SETTINGS]
        for place, (arm, colour) in enumerate(ARMS.items()):
            chosen = [row for row in rows if row["arm"] == arm]
            draw_shares(shares, chosen, place, colour, arm)
            for panel, key in ((tv, "tv"), (frechet, "frechet")):
                panel.plot([place] * len(chosen), [row[key] for row in chosen], "o", color=colour, alpha=0.7)
        shares.axhline(FLOOR, color="black", linewidth=0.6, linestyle=":")
        shares.set(title=f"{TITLES.get(folder.name, folder.name)}: generated share by class", xticks=range(10), ylim=0)
        shares.legend(frameon=False, fontsize=8)
        for panel, title in ((tv, "total variation"), (frechet, "Fréchet distance")):
            panel.set(title=title, ylim=0, xticks=range(len(ARMS)), xlim=(-0.5, len(ARMS) - 0.5))
            panel.set_xticklabels(["none", "fixed", "loop"])
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUT, dpi=110)


def draw_shares(axes: Any, rows: list[dict[str, Any]], place: int, colour: str, arm: str) -> None:
    for number, row in enumerate(rows):
        classes = [c + 0.2 * (place - 1) for c in range(len(row["shares"]))]
        axes.plot(classes, row["shares"], "o", color=colour, alpha=0.6, markersize=4, label=None if number else arm)


if __name__ == "__main__":
    main()

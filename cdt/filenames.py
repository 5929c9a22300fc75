"""The names of the files in a run directory."""

from __future__ import annotations

CONFIG = "config.yaml"
"""The resolved configuration."""
DATA = "data.json"
"""What the run was trained on."""
CALIBRATION = "calibration.json"
"""Windows and thresholds."""
EVALUATION = "evaluation.json"
CARD = "README.md"
"""The model card."""
METRICS, EVENTS, DUAL = "metrics.jsonl", "events.jsonl", "dual.jsonl"
"""The journals: rows of averages, what happened, every dual step."""
FILES = (CONFIG, DATA, CALIBRATION, METRICS, DUAL, EVENTS, CARD, EVALUATION)
"""All of these, without pictures, logs and TensorBoard."""
CHECKPOINTS = "checkpoints"
"""The folder of checkpoints, each a folder ``step-N``."""
TENSORBOARD, SAMPLES, LOGS, STACKS = "tb", "samples", "logs", "stacks"
"""Folders of TensorBoard's files, of pictures, of what the workers print, and of their stacks."""
FOLDERS = (CHECKPOINTS, TENSORBOARD, SAMPLES, LOGS, STACKS)
MANIFEST = "manifest.json"
"""Of a checkpoint: its files with sizes and digests, written last."""

"""From when on a report says something. No imports: model cards and tables read them."""

CONFIDENT = 0.9
"""Probability of the most probable class above which a judge counts as sure of a sample."""
SUSPICIOUS = 0.01
"""Chance of this many near-copies, over all classes (Bonferroni), below which they are reported."""

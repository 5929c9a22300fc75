"""A run of seconds, a worker on each of two nodes."""

CONFIG = """
run: {workers: 2, threads: 1, placement: spread}
data: {shards: data, epoch_samples: 64}
network: {kind: dit, patch: 4, width: 16, depth: 1, heads: 2}
constraints:
  four: {class: 4, min_frequency: 0.2}
probe: {draws: 16}
train: {batch_size: 16, warm_steps: 8, dual_steps: 8, checkpoint_steps: 8, lr: 0.002, log_steps: 4, grid_images: 0}
"""

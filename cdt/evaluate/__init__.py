"""Measures what a model generates: class shares, distances to real images, near-copies of training images."""

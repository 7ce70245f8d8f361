"""A finished run, handed on: packed into a bundle, regenerated from one, published."""

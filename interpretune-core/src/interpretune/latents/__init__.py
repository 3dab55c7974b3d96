"""Latent models, and models with latent models spliced in."""

"""Modules as a user writes them: settings and helpers that latent models and prompts take from elsewhere."""

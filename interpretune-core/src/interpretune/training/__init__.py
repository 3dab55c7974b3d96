"""Training and evaluation loops: one call for every framework, and core's own in plain PyTorch."""

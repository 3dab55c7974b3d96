"""The main job: the four latent analyses on a real language model, with one command and no hub."""

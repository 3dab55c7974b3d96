"""What latent models are: the protocol, and the further members that make them faster, trainable or savable."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

from .replaced import replaced_method, replaced_methods, standing_method

__all__ = ["replaced_method", "replaced_methods", "standing_method"]

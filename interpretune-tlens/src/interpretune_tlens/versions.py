"""What depends on the version of TransformerLens: whether it has ``HookedTransformer``, which version 4 has removed.

Everything that needs the class is in ``interpretune_tlens.hooked``; all else is the same with every version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from interpretune import ModelLoadError


def check_hooked_transformer(asked_by: str) -> None:
    """Refuse what makes a ``HookedTransformer`` where TransformerLens has none.

    Args:
        asked_by: What in the configuration asks for one, and what to write in its place.

    Raises:
        ModelLoadError: The installed TransformerLens has none.
    """
    if importlib.util.find_spec("transformer_lens.HookedTransformer") is None:
        version = importlib.metadata.version("transformer-lens")
        raise ModelLoadError(
            f"No HookedTransformer can be made: transformer-lens {version} is installed, and 4.0 has removed them. "
            f'{asked_by}, or install a version that has them: `pip install "transformer-lens>=3.9,<4"`.'
        )

"""Every rule of the kit on bridges, for ``make test-tlens4``; ``make test`` has those that matter most."""

from interpretune_tlens.conformance import TransformerLensConformance


class TestBridge(TransformerLensConformance):
    """Of the TransformerLens that is installed."""

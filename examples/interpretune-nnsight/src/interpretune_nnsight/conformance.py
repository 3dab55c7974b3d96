"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from interpretune.testing import AdapterConformance


class NNsightConformance(AdapterConformance):
    """Sessions with nnsight alone."""

    adapter = "nnsight"

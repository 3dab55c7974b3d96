"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from interpretune.testing import AdapterConformance


class InterpEngineConformance(AdapterConformance):
    """Sessions with interp-engine alone."""

    adapter = "interp_engine"

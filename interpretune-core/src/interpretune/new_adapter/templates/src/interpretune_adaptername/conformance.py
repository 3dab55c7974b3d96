"""How interpretune checks this adapter, under pytest and in ``interpretune doctor``."""

from interpretune.testing import AdapterConformance


class AdapterNameConformance(AdapterConformance):
    """Inherits one check for each rule of the contract."""

    adapter = "adapter_name"
    # `stack`, `write_tiny_model` and `module_settings` can be given here, where the defaults do not fit

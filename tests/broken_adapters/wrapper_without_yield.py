"""Wraps a step without yielding."""

import interpretune as it


class WrapperWithoutYield:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_step(self, module, step_name, step):
        return step()


adapter = WrapperWithoutYield()

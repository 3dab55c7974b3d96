"""Has hooks and no declaration."""

import interpretune as it


class NoDeclaration:
    @it.hookimpl
    def it_forward(self, module, batch):
        return None


adapter = NoDeclaration()

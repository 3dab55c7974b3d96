"""Gives the latent models of a session names of their own, which no other session has."""

import uuid

import interpretune as it


class NamesLatentModelsAnew:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        for item in module.latent_models:
            item.session = uuid.uuid4().hex


adapter = NamesLatentModelsAnew()

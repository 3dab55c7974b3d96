"""A session: a module and a data module, composed for a stack."""

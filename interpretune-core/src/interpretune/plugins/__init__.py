"""How adapters are declared, found and stacked."""

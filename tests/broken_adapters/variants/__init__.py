"""Bugs of the broken adapters in another form: each is for the one rule that must find it, whatever its form."""

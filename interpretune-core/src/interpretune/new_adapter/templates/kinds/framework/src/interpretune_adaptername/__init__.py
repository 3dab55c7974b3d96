"""A trainer for sessions of interpretune."""

"""An extension of interpretune: times steps, and offers an operation."""

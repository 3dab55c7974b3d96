"""Models of another library for interpretune."""

"""Configurations that users fill in and subclass."""

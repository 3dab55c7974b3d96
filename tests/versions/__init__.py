"""Tests with the lowest and the newest versions of libraries that the packages' metadata allow."""

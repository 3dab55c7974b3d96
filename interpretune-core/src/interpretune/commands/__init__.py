"""What ``interpretune run`` and ``interpretune hooks`` do; the command line itself is ``interpretune.cli``."""

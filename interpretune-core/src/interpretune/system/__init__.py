"""Files, threads, processes and progress: what knows nothing of models."""

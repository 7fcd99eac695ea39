"""Out of the training run: a model for other runtimes, for event streams, and for hardware."""

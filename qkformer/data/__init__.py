"""Data sets, their loaders, and what happens to a whole batch on the device."""

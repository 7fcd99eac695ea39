"""From a configuration to trained weights: train.py reads top to bottom, main.py opens it."""

"""From a configuration to trained weights: `qkformer.training.run` is the way in."""

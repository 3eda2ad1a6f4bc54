"""Files of weights and settings: opened safely, recognised, read."""

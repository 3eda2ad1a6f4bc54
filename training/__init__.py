"""How the tiny Open-Sora of ``demo/`` is made: data, losses and the training loops. Nothing in ``nodes/`` needs it."""

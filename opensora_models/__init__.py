"""The machine: networks, autoencoders, text rules and sampling maths. Imports nothing of nodes/."""

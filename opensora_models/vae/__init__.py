"""The video autoencoders of Open-Sora 1.2 and 1.3."""

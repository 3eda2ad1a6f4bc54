"""STDiT3, the diffusion transformer of Open-Sora 1.2 and 1.3."""

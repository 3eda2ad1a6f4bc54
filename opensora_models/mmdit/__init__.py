"""MMDiT: the diffusion transformer of Open-Sora 2.0, which is a Flux with one more input."""

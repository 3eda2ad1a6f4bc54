"""ComfyUI's MODEL with an Open-Sora network in it."""

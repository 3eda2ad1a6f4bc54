"""ComfyUI's CLIP with an Open-Sora text encoder in it."""

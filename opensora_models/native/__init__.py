"""The only room that imports comfy: our machine dressed as ComfyUI's MODEL, VAE, CLIP and guiders."""

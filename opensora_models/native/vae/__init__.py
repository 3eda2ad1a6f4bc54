"""ComfyUI's VAE with an Open-Sora autoencoder in it, and decoding that streams."""

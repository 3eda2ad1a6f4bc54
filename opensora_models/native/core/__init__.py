"""What ComfyUI's own nodes are taught: files they would not know, names of LoRA weights."""

"""Guiders, samplers and whole runs on ComfyUI's sampling."""

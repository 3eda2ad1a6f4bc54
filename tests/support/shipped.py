"""The releases with a tiny trained model in ``demo/models``; tests take up another as soon as its files lie there."""

from __future__ import annotations

from opensora.opensora_models.releases.known import RELEASES
from support.pack import PACK_ROOT

DEMO = PACK_ROOT / "demo" / "models"
SHIPPED = tuple(
    release for release in RELEASES if (DEMO / "diffusion_models" / f"opensora-tiny-v{release}.safetensors").is_file()
)


def of_shipped(*releases: str) -> list[str]:
    """Those of ``releases`` that are shipped, for parameters of a test."""
    return [release for release in releases if release in SHIPPED]

"""What comes with the pack: models, offered by every loader of ComfyUI, and the step tables measured on them."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..caching.table_file import ENDING

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEMO_MODELS = DEMO / "models"
CATEGORIES = ("diffusion_models", "vae", "text_encoders", "loras")


def register_demo_models(root: Path = DEMO_MODELS) -> list[str]:
    """Adds ``root/<category>`` to ComfyUI's model folders where it exists; returns the categories added to.

    ComfyUI's own function would give a new category an empty set of file endings, which lists every file; hence the
    merge. Calling it again changes nothing.
    """
    added = []
    for category in CATEGORIES:
        folder = root / category
        if folder.is_dir():
            merge(category, [str(folder)])
            added.append(category)
    return added


def shipped_tables(root: Path = DEMO / "step_tables") -> dict[str, Path]:
    """Files of step tables by what menus call them: the model each was measured on."""
    return {f"{path.name.removesuffix(ENDING)}, measured": path for path in sorted(root.glob(f"*{ENDING}"))}


def merge(category: str, folders: list[str]) -> None:
    """Adds folders to a category, new or not, keeping what is there first and knowing ComfyUI's weight endings."""
    known, endings = folder_paths.folder_names_and_paths.get(category, ([], set()))
    everything = list(dict.fromkeys([*known, *folders]))
    folder_paths.folder_names_and_paths[category] = (everything, set(endings) | folder_paths.supported_pt_extensions)
    folder_paths.filename_list_cache.pop(category, None)

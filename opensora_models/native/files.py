"""Files that nodes offer for loading: their names, where they are, and whether one has changed since it was loaded."""

from __future__ import annotations

import difflib
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

import folder_paths

from ..caching.table_file import ENDING as TABLE_ENDING
from ..checkpoint.opening import SHARD_NAME
from ..messages.quoting import LONGEST_FILE_NAME, quoted, shown
from ..storage.file_tree import FileTree, is_inside, stamp
from ..vae.latent_file import ENDING as LATENT_ENDING

CONDITIONING_ENDING = ".conditioning.safetensors"

WATCHED = 256
"""Names that came by wire and are watched for changes; ComfyUI keeps the results of far fewer nodes."""
MOST_COMPARED = 300  # names among which the nearest is looked for; thousands would take seconds


class Files(ABC):
    """Files of one kind. Keeps listings of folders, and which files were opened in which state.

    Args:
        missing: what is wrong with a name that is not there, as the middle of a sentence.
        none_yet: what to do where there is no file at all, as its end.
        follow_links: see ``FileTree``; the times of files are read where links are not followed.
    """

    def __init__(self, missing: str, none_yet: str, *, follow_links: bool) -> None:
        self._missing, self._none_yet, self._follow_links = missing, none_yet, follow_links
        self._trees: dict[tuple[str, tuple[str, ...]], FileTree] = {}
        self._listed: list[dict[str, int]] = []
        self._names: list[str] = []
        self._opened: dict[str, str] = {}
        self._changes = 0

    @abstractmethod
    def roots(self) -> list[str]:
        """The folders to look in, as they are now."""

    @abstractmethod
    def endings(self) -> tuple[str, ...]:
        """What names end in, in lower case; empty for any ending."""

    @abstractmethod
    def ordered(self, listed: list[dict[str, int]]) -> list[str]:
        """Names for a menu, of the files below each root and when they changed."""

    @abstractmethod
    def find(self, name: str) -> Path | None:
        """The file of a name, in a menu or not, that lies within the folders of this kind."""

    def parts(self, path: Path) -> Collection[Path]:
        """All that is read when ``path`` is loaded, whether it is there or not."""
        return (path,)

    def names(self) -> list[str]:
        """What a node offers: files that are there and can be opened by this name."""
        keys = [(root, self.endings()) for root in self.roots()]
        self._trees = {key: self._trees.get(key) or self._tree(*key) for key in keys}
        listed = [self._trees[key].files() for key in keys]
        if len(listed) != len(self._listed) or any(map(operator.is_not, listed, self._listed)):
            self._listed, self._names = listed, self.ordered(listed)
        return list(self._names)

    def path(self, name: object) -> Path:
        """The file of a name, from a menu or by wire; it is watched from now on. ValueError where there is none."""
        if not isinstance(name, str):
            raise ValueError(f"The name of a file is needed, but {shown(name)} was given; {self._nearest('')}.")
        found = self.find(name)
        if found is None:
            raise ValueError(f"{quoted(name, LONGEST_FILE_NAME)} {self._missing}; {self._nearest(name)}.")
        self._watch(name)
        return found

    def fingerprint(self, name: str | None) -> str:
        """Another text when the file has changed; "" where there is none.

        ComfyUI gives None for a name that comes by wire, which is not known yet. Then every file that was opened here
        counts: the text changes when one of them has, and is the same for a second run of the same graph.
        """
        if name is not None:
            return self._state(name)
        for known in list(self._opened):
            self._watch(known)
        return f"change {self._changes}"

    def _tree(self, root: str, endings: tuple[str, ...]) -> FileTree:
        return FileTree(root, endings, follow_links=self._follow_links, dated=not self._follow_links)

    def _watch(self, name: str) -> None:
        state, before = self._state(name), self._opened.pop(name, None)
        self._changes += before is not None and before != state
        self._opened[name] = state  # the last one used stands last
        while len(self._opened) > WATCHED:
            del self._opened[next(iter(self._opened))]

    def _state(self, name: str) -> str:
        found = self.find(name)
        return "" if found is None else " ".join(map(stamp, self.parts(found)))

    def _nearest(self, name: str) -> str:
        names = list(filter(str.isprintable, self.names()[:MOST_COMPARED]))
        near = difflib.get_close_matches(name[:LONGEST_FILE_NAME], names, n=1, cutoff=0.0) or names[:1]
        return f"the nearest good value is '{near[0]}'" if near else self._none_yet


class WeightFiles(Files):
    """Model files of one of ComfyUI's categories, with the names ComfyUI gives them.

    ComfyUI's own list (``folder_paths.get_filename_list``) raises when a folder has gone since it was made, walks links
    in loops forty levels down, and names links that lead nowhere.
    """

    def __init__(self, category: str) -> None:
        super().__init__(f"is not in models/{category} any more", "put a file there and press R", follow_links=True)
        self.category = category

    def roots(self) -> list[str]:
        """ComfyUI's folders of the category."""
        return folder_paths.get_folder_paths(self.category)

    def endings(self) -> tuple[str, ...]:
        """The endings of the category; other packs may add some."""
        return tuple(sorted(folder_paths.folder_names_and_paths[self.category][1]))

    def ordered(self, listed: list[dict[str, int]]) -> list[str]:
        """By name; a name that lies in several folders once."""
        return sorted({name for files in listed for name in files})

    def find(self, name: str) -> Path | None:
        """In the first folder that has it. A name cannot lead out of the folders, their links can."""
        try:
            inside = os.path.relpath(os.path.join(os.sep, name), os.sep)
        except ValueError:  # another drive of Windows
            return None
        paths = (os.path.join(root, inside) for root in self.roots())
        return next((Path(path) for path in paths if "\0" not in name and os.path.isfile(path)), None)

    def parts(self, path: Path) -> Collection[Path]:
        """The file or all shards of its set, and where its settings may stand."""
        shard = SHARD_NAME.match(path.name)
        others = [] if shard is None else _names_in(path.parent, f"-of-{shard['count']}{shard['ending']}")
        return [path, *others, path.with_suffix(".json"), path.parent / "config.json"]


class SavedFiles(Files):
    """What nodes have written: in ComfyUI's output folder, or in its input folder if it comes from elsewhere.

    Names are those of ComfyUI's own nodes: ``folder/name.ending [output]``. The newest come first; the time of a file
    is read when its name appears or it is replaced, and not again when it is overwritten in place.
    """

    def __init__(self, ending: str, kind: str, source: str, input_mark: str) -> None:
        none_yet = f"save one with {source}, or put a file ending in {ending} into ComfyUI's input folder"
        super().__init__(f"is not among the saved {kind}", none_yet, follow_links=False)
        self.ending, self.marks = ending, (" [output]", input_mark)

    def roots(self) -> list[str]:
        """ComfyUI's output and input folders."""
        return [folder_paths.get_output_directory(), folder_paths.get_input_directory()]

    def endings(self) -> tuple[str, ...]:
        """The one ending."""
        return (self.ending,)

    def ordered(self, listed: list[dict[str, int]]) -> list[str]:
        """The newest first, those of the output folder before all others."""
        names: list[str] = []
        for files, mark in zip(listed, self.marks, strict=True):
            newest = sorted(sorted(files), key=files.__getitem__, reverse=True)
            names += [f"{name if os.sep == '/' else name.replace(os.sep, '/')}{mark}" for name in newest]
        return names

    def find(self, name: str) -> Path | None:
        """A file with the ending that lies in its folder, wherever links lead; without a mark in the input folder.

        A full path, as decode nodes give it, is found in either folder.
        """
        output, given = self.roots()
        in_output = name.endswith(" [output]")
        if os.path.isabs(name) and not in_output and is_inside(name, output):
            name, in_output = f"{name} [output]", True
        root, inside = (output, name[: -len(" [output]")]) if in_output else (given, name.removesuffix(" [input]"))
        path = os.path.join(root, inside)
        fits = inside.lower().endswith(self.ending) and is_inside(path, root) and os.path.isfile(path)
        return Path(path) if fits else None


def _names_in(folder: Path, ending: str) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.endswith(ending))
    except OSError:  # gone meanwhile
        return []


MODELS, VAES, TEXT_ENCODERS = map(WeightFiles, ("diffusion_models", "vae", "text_encoders"))
CONDITIONINGS = SavedFiles(CONDITIONING_ENDING, "conditionings", "Open-Sora Save Conditioning", " [input]")
LATENTS = SavedFiles(LATENT_ENDING, "latents", "an Open-Sora decode node", "")
STEP_TABLES = SavedFiles(TABLE_ENDING, "step tables", "Open-Sora Calibrate Step Cache", " [input]")

"""What a translation has to hold, read off the nodes and the English pages, and what two texts have in common."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from support.pack import PACK_ROOT

LOCALES = PACK_ROOT / "locales"
DOCS = PACK_ROOT / "js" / "docs"
COMPLETE = ("ja", "ko", "zh", "zh-TW")  # every text and every help page
NAMED = ("fr", "de", "es", "ru")  # names and descriptions of the nodes

NUMBER = re.compile(r"(?<![A-Za-z_\d.])\d+(?:\.\d+)?(?:\s?(?:%|[KMGT]i?B|dB|px|Hz|fps)(?![A-Za-z]))?[²³]?")
# Words that are the same in every language: in backticks, placeholders, files and folders, names with an underscore,
# names with digits such as bf16.
CODE = re.compile(
    r"`[^`]+`|%[^%\s]+%|\|\d+\||<[a-z][^>]*>"
    r"|(?<![A-Za-z0-9_./])(?:models|workflows|input|output)/[a-z_/]*[a-z_]"
    r"|(?<![A-Za-z0-9_])(?:[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+|[a-z]+\d[a-z0-9]*)(?:\.[a-z]+)?(?![A-Za-z0-9_])"
    r"|(?<![A-Za-z0-9])\.(?:latent|safetensors|json|mp4|webm)(?![A-Za-z0-9])"
)
# Types and abbreviations, and ids of nodes; where the sentence needs it, a translation may have one more.
TERMS = re.compile(
    r"(?<![A-Za-z0-9_])(?:[A-Z][A-Z0-9]+|KSampler|[A-Z][a-z]{2,}[A-Z][A-Za-z0-9]+?)(?=s?(?![A-Za-z0-9_]))"
)
# The message or option that an item of a list is about: nodes say and show both in English.
QUOTED = re.compile(r"(?<=^[*-] )\*(?!\*)[^*]+\*")
# A plain message of the page's vue-i18n; in tooltips the page itself takes the text as it stands.
FORMATTED = re.compile(r"[{}@|]")
BLOCK_STARTS = (("heading", re.compile(r"#+ ")), ("row", re.compile(r"\|")), ("item", re.compile(r"[*-] |\d+\. ")))


def key_of(name: str) -> str:
    """A name as the page asks for it: a dot would part two keys."""
    return name.replace(".", "_")


def all_inputs(entries: list[Any], prefix: str = "") -> dict[str, Any]:
    """Inputs by the name they have on the page, those inside the choices of a dynamic list too."""
    found: dict[str, Any] = {}
    for entry in entries:
        found[prefix + entry.id] = entry
        for option in getattr(entry, "options", None) or []:
            found |= all_inputs(getattr(option, "inputs", []), f"{prefix}{entry.id}.")
    return found


def english_definitions(nodes: list[Any]) -> dict[str, Any]:
    """The nodes' own texts in the form of a ``nodeDefs.json``; the page needs no English file beside them."""
    definitions = {}
    for node in nodes:
        schema = node.define_schema()
        definitions[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                key_of(name): {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}
                for name, entry in all_inputs(schema.inputs).items()
            },
            "outputs": {
                str(i): {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}
                for i, entry in enumerate(schema.outputs)
            },
        }
    return definitions


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[str, str]:
    """Every text of a tree by its address, ``OSoraSize.inputs.model.tooltip``."""
    if not isinstance(tree, dict):
        return {".".join(path): tree}
    return {address: text for key, below in tree.items() for address, text in leaves(below, (*path, key)).items()}


def names_only(texts: dict[str, str]) -> dict[str, str]:
    """The names and descriptions of nodes among all their texts."""
    return {address: text for address, text in texts.items() if address.count(".") == 1}


def read_locale(language: str, file: str) -> dict[str, Any]:
    """One file of a language, empty where it has none."""
    path = LOCALES / language / f"{file}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def blocks(page: str) -> list[tuple[str, str]]:
    """A help page as (kind, text): headings, rows, items of lists, paragraphs, code, each as one line."""
    found: list[tuple[str, str]] = []
    fresh, code = True, False
    for line in page.splitlines():
        if line.lstrip().startswith("```"):
            fresh, code = True, not code
            found += [("code", line)] if code else []
        elif code:
            found.append(("code", line))
        elif not line.strip():
            fresh = True
        else:
            kind = next((name for name, start in BLOCK_STARTS if start.match(line.lstrip())), None)
            if kind or fresh or found[-1][0] in ("heading", "row"):
                found.append((kind or "text", line.strip()))
            else:
                found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
            fresh = False
    return found


def differences(english: str, other: str) -> list[str]:
    """Numbers and code words of a text that its translation lacks, or has without being asked."""
    numbers = [Counter(re.sub(r"\s", "", word) for word in NUMBER.findall(text)) for text in (english, other)]
    words = [set(CODE.findall(text)) for text in (english, other)]
    lacking = [*(numbers[0] - numbers[1]).elements(), *(words[0] - words[1])]
    lacking += set(TERMS.findall(english)) - set(TERMS.findall(other))
    lacking += set(QUOTED.findall(english)) - set(QUOTED.findall(other))
    added = [*(numbers[1] - numbers[0]).elements(), *(words[1] - words[0])]
    return [f"lacks {word}" for word in sorted(lacking)] + [f"adds {word}" for word in sorted(added)]


def broken_emphasis(text: str) -> list[str]:
    """Stars that Markdown would show as they are, such as those between a bracket and a letter."""
    prose, broken = re.sub(r"`[^`]*`", "x", re.sub(r"^[*-] ", "", text)), []
    opened = {"*": False, "**": False}
    for found in re.finditer(r"\*{1,2}", prose):
        before, after = f" {prose}"[found.start()], f"{prose} "[found.end()]
        inner, outer = (before, after) if opened[found[0]] else (after, before)
        opened[found[0]] = not opened[found[0]]
        if inner.isspace() or not (inner.isalnum() or outer.isspace() or not outer.isalnum()):
            broken.append(prose[max(0, found.start() - 12) : found.end() + 12])
    return broken + [f"{stars} is not closed" for stars, still in opened.items() if still]


def unnamed(english: str, other: str, titles: dict[str, tuple[str, str]]) -> list[str]:
    """Nodes that a text names and its translation does not call by the name the page shows there.

    ``titles``: node id -> (English title, translated title).
    """
    rest, found = " ".join(english.split()), []
    for title, translated in sorted(titles.values(), key=lambda pair: -len(pair[0])):
        if title in rest:
            rest = rest.replace(title, "")
            if translated not in other:
                found.append(f"{title}: not called {translated}")
    return found

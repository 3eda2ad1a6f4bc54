"""The arrows of the house and the rules every source file keeps, read from the sources themselves."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.pack import PACK_ROOT

COMFYUI = {
    *("comfy", "comfy_api", "comfy_extras", "comfy_execution", "comfy_config", "folder_paths", "nodes"),
    *("node_helpers", "latent_preview", "server", "execution", "app", "utils"),
}
NETWORK = {"requests", "urllib.request", "http", "socket", "huggingface_hub", "aiohttp", "httpx", "ftplib"}
EXECUTES_DATA = re.compile(r"\b(pickle|marshal|shelve|dill|joblib)\.(loads?|open|Unpickler)\b|\b(eval|exec)\(")
TIMES = {"seconds", "fastest", "row", "run", "ratio", "compiling"}  # what benchmarks call measured times
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50


def sources(*folders: str) -> list[Path]:
    """Python files below folders of the repository, without what dev.py made."""
    return sorted(path for folder in folders for path in (PACK_ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    """A file's path inside the repository."""
    return path.relative_to(PACK_ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports; relative imports as the path inside the repository, with dots."""
    package = path.relative_to(PACK_ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *((node.module,) if node.module else ())))
            yield module
            if node.level:  # `from . import name`: the name may itself be a module
                yield from (f"{module}.{alias.name}" for alias in node.names)


def relative_to_pack(path: Path) -> set[str]:
    """What a file imports from the pack itself."""
    local = {"nodes", "opensora_models", "devtools", "training", "demo", "tests"}
    inside = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside |= {name for name in imports(path) if name.split(".")[0] in local}
    return inside


MACHINE = sources("opensora_models")
NATIVE = [path for path in MACHINE if "native" in path.parts]
PURE = [path for path in MACHINE if "native" not in path.parts]
SHIPPED = [PACK_ROOT / "__init__.py", *sources("nodes"), *MACHINE]
EVERYTHING = [
    PACK_ROOT / "dev.py",
    PACK_ROOT / "batch.py",
    *SHIPPED,
    *sources("devtools", "tests", "demo", "benchmarks", *(["training"] if (PACK_ROOT / "training").is_dir() else [])),
]


@pytest.mark.parametrize("path", MACHINE, ids=named)
def test_the_machine_knows_no_nodes(path: Path) -> None:
    assert not [name for name in relative_to_pack(path) if name.split(".")[0] != "opensora_models"]


@pytest.mark.parametrize("path", PURE, ids=named)
def test_only_native_imports_comfyui(path: Path) -> None:
    absolute = {name.split(".")[0] for name in imports(path)} - {"opensora_models"}
    assert absolute & COMFYUI == set()


@pytest.mark.parametrize("path", PURE, ids=named)
def test_the_rest_never_imports_native(path: Path) -> None:
    assert not [name for name in relative_to_pack(path) if name.startswith("opensora_models.native")]


def room(module: str) -> str | None:
    """The room of a module of the machine; None for what is in none, and for `native/`, which sees them all."""
    parts = module.split(".")
    is_inside = parts[0] == "opensora_models" and len(parts) > 1 and (PACK_ROOT / parts[0] / parts[1]).is_dir()
    return parts[1] if is_inside and parts[1] != "native" else None


def test_the_rooms_form_no_circle() -> None:
    """Whatever a room uses, directly or through others, does not use that room."""
    uses: dict[str, set[str]] = {}
    for path in PURE:
        here = room(".".join(path.relative_to(PACK_ROOT).parent.parts))
        assert here or path.parent.name == "opensora_models" and path.name == "__init__.py", "no file outside a room"
        if here:
            uses.setdefault(here, set()).update(filter(None, map(room, relative_to_pack(path))))
    graph = {name: used - {name} for name, used in uses.items()}
    assert len(graph) > 8 and any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


RELEASE_IDS = {"1.2", "1.3", "2.0", "2.0 high compression"}
TELLS_RELEASES_APART = {
    "opensora_models/stdit3/config.py": "which of two networks a file holds, and what the two do differently",
}
"""The only files outside ``releases/`` that may compare with a release's id."""


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_what_depends_on_the_release_is_asked_of_its_description(path: Path) -> None:
    found = [node.lineno for node in ast.walk(tree(path)) if _asks_for_a_release(node)]
    allowed = "releases" in path.parts or named(path) in TELLS_RELEASES_APART
    assert allowed or not found, f"lines {found} ask which release it is; give Release a field that says what differs"


def _asks_for_a_release(node: ast.AST) -> bool:
    """Whether a comparison, a match case or ``startswith`` names a release; ``in`` with its ids counts as well."""
    if isinstance(node, ast.Compare):
        return any(_names_a_release(each) for each in (node.left, *node.comparators))
    if isinstance(node, ast.MatchValue):
        return _names_a_release(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
        return any(isinstance(each, ast.Constant) and each.value in {"1.", "2.", *RELEASE_IDS} for each in node.args)
    return False


def _names_a_release(node: ast.AST) -> bool:
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(_names_a_release(each) for each in node.elts)
    if isinstance(node, ast.Subscript):  # RELEASES["1.2"]
        return _names_a_release(node.slice)
    return isinstance(node, ast.Constant) and node.value in RELEASE_IDS


@pytest.mark.parametrize(
    "code",
    ['version == "1.2"', '"2.0" != x.id', 'v in ("1.2", "1.3")', 'release is RELEASES["2.0"]', 'v.startswith("2.")'],
)
def test_the_rule_sees_every_way_of_asking(code: str) -> None:
    assert any(_asks_for_a_release(node) for node in ast.walk(ast.parse(code)))
    assert all(any(map(_asks_for_a_release, ast.walk(tree(PACK_ROOT / path)))) for path in TELLS_RELEASES_APART)


@pytest.mark.parametrize("path", sources("nodes"), ids=named)
def test_nodes_speak_to_comfyui_through_its_node_api_only(path: Path) -> None:
    absolute = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
        for alias in node.names
    }
    assert {name for name in absolute if name.split(".")[0] in COMFYUI} <= {"comfy_api.latest"}
    assert not [name for name in relative_to_pack(path) if name.split(".")[0] in ("training", "devtools", "tests")]


def test_an_input_that_nodes_share_is_declared_once() -> None:
    """One with bounds, options or the like, by its kind, name and words; a function gives it to the others."""
    places: dict[tuple[str, ...], list[str]] = {}
    for path in sources("nodes"):
        for call in ast.walk(tree(path)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".Input") and len(call.keywords) > 2:
                words = [ast.unparse(each.value) for each in call.keywords if each.arg == "tooltip"]
                declared = (ast.unparse(call.func), *map(ast.unparse, call.args), *words)
                places.setdefault(declared, []).append(f"{named(path)}:{call.lineno}")
    assert len(places) > 50
    assert {declared: found for declared, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_no_network_and_no_code_in_data(path: Path) -> None:
    imported = set(imports(path)) | {name.split(".")[0] for name in imports(path)}
    # Ray is where a person writes it to be; whether it answers is asked before Ray itself asks for minutes.
    asks = {"socket"} if named(path) == "opensora_models/parallel/ray_connection.py" else set()
    assert imported & NETWORK == asks
    assert not EXECUTES_DATA.search(re.sub(r"\.eval\(", "", path.read_text(encoding="utf-8")))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"line {node.lineno}"


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_no_device_juggling_and_no_search_path_edits(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\.cuda\(|sys\.path|empty_cache\(", text)


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_one_logger(path: Path) -> None:
    named_loggers = re.findall(r"getLogger\(([^)]*)\)", path.read_text(encoding="utf-8"))
    assert set(named_loggers) <= {'"opensora"'}


@pytest.mark.parametrize("path", EVERYTHING, ids=named)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno is not None}
    long.pop("define_schema", None)  # a table of inputs and their texts, not code
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", [path for path in EVERYTHING if path.name != Path(__file__).name], ids=named)
def test_nothing_is_left_for_later(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", path.read_text(encoding="utf-8"))


def _which_took_longer(node: ast.AST) -> bool:
    """Whether two measured times of a benchmark's record are ordered: beside other work either may come out longer."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    timed = [any(isinstance(part, ast.Constant) and part.value in TIMES for part in ast.walk(side)) for side in sides]
    ordered = [isinstance(how, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for how in node.ops]
    return any(left and how and right for left, how, right in zip(timed, ordered, timed[1:], strict=False))


@pytest.mark.parametrize("path", sources("tests"), ids=named)
def test_no_test_asks_which_of_two_measured_times_is_longer(path: Path) -> None:
    assert [node.lineno for node in ast.walk(tree(path)) if _which_took_longer(node)] == []


@pytest.mark.parametrize("code", ['a["run"]["40 %"] < a["run"]["100 %"]', '0 < a["row"] <= 2 * b["seconds"]'])
def test_the_rule_sees_two_measured_times(code: str) -> None:
    assert any(map(_which_took_longer, ast.walk(ast.parse(code))))
    assert not any(map(_which_took_longer, ast.walk(ast.parse('a["seconds"] == 2 * a["row"] > 0'))))


def _sets_a_limit(node: ast.AST) -> bool:
    """Whether a test waits for a number of seconds of its own; those of ``support.patience`` are for all."""
    if isinstance(node, ast.keyword) and node.arg == "timeout":
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return ast.unparse(node.left) == "time.monotonic()" and isinstance(node.right, ast.Constant)
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.timeout"


@pytest.mark.parametrize("path", sources("tests"), ids=named)
def test_no_test_has_a_time_limit_that_a_slow_machine_reaches(path: Path) -> None:
    assert [node.lineno for node in ast.walk(tree(path)) if _sets_a_limit(node)] == []


@pytest.mark.parametrize("code", ["a.run(b, timeout=60)", "end = time.monotonic() + 20", "pytest.mark.timeout(400)"])
def test_the_rule_sees_time_limits(code: str) -> None:
    assert any(map(_sets_a_limit, ast.walk(ast.parse(code))))
    assert not any(map(_sets_a_limit, ast.walk(ast.parse("a.run(timeout=HANGS_SECONDS)"))))


@pytest.mark.parametrize("path", sources("devtools"), ids=named)
def test_devtools_need_only_the_standard_library(path: Path) -> None:
    import sys

    absolute = {name.split(".")[0] for name in imports(path)} - {"devtools", "_winapi"}
    assert absolute <= set(sys.stdlib_module_names)


def test_the_archive_holds_all_that_batch_needs() -> None:
    """``.comfyignore`` keeps the rest of `devtools/` out of the registry's archive, which batch.py is part of."""
    left_out = set((PACK_ROOT / ".comfyignore").read_text(encoding="utf-8").split())
    needed, waiting = set(), sources("devtools/batch")
    while waiting:
        path = waiting.pop()
        if named(path) not in needed:
            needed.add(named(path))
            modules = [PACK_ROOT / (name.replace(".", "/") + ".py") for name in relative_to_pack(path)]
            waiting += [module for module in modules if module.is_file()]
    assert {"devtools/client.py", "devtools/places.py", "devtools/server.py"} <= needed
    assert not needed & left_out and not {"batch.py", "devtools/", "devtools/batch/", "docs/"} & left_out


def test_the_types_of_every_file_of_the_page_are_checked() -> None:
    """`tsc` reads what ``js/jsconfig.json`` names: no file may be left out there, or leave itself out."""
    page = PACK_ROOT / "js"
    settings = json.loads((page / "jsconfig.json").read_text(encoding="utf-8"))
    assert settings["compilerOptions"]["checkJs"] and settings["compilerOptions"]["strict"]
    assert not settings.keys() & {"exclude", "files"}
    checked = {path for pattern in settings["include"] for path in page.glob(pattern)}
    files = set(page.rglob("*.js"))
    assert files and files <= checked
    assert not [named(path) for path in files if re.search(r"@ts-(nocheck|ignore)", path.read_text(encoding="utf-8"))]


def test_the_rules_see_files() -> None:
    assert NATIVE and PURE and len(EVERYTHING) > len(SHIPPED)

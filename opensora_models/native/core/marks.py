"""One mistake is marked once.

ComfyUI does not know which of the inputs that a node's ``validate_inputs`` names is the wrong one: it gives an error
for each of them, beside its own where a value could not be read. For our nodes what it found is cut down to the error
of the guilty input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .replacement import Function, Replacement

Guilty = Callable[[Any, str, Sequence[str]], "str | None"]
"""``(node class, sentence, marked inputs)`` -> the input that the sentence is about; None for another pack's node."""
OF_VALIDATION = "custom_validation_failed"


def register(guilty: Guilty) -> None:
    """Lets ComfyUI mark one input for one mistake; calling it again changes nothing."""
    import execution  # late, since it brings in all of ComfyUI's nodes

    classes = execution.nodes.NODE_CLASS_MAPPINGS
    Replacement(execution, "validate_inputs", functools.partial(_marking_once, guilty, classes)).put()


def _marking_once(guilty: Guilty, classes: Mapping[str, Any], original: Function) -> Function:
    @functools.wraps(original)
    async def validate_inputs(prompt_id: Any, prompt: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        found = await original(prompt_id, prompt, item, *args, **kwargs)
        _keep_one(found[1], classes.get(prompt[item].get("class_type", "")), guilty)
        return found

    return validate_inputs


def _keep_one(errors: list[dict[str, Any]], node: Any, guilty: Guilty) -> None:
    """Takes every error that says the same of another input, or says less of this one, out of ``errors``."""
    said = {_input_of(error): error for error in errors if error["type"] == OF_VALIDATION}
    if not said:
        return
    first, error = next(iter(said.items()))
    name = guilty(node, str(error["details"]).removeprefix(f"{first} - "), list(said))
    if name is None:
        return
    errors[:] = [each for each in errors if (_input_of(each) == name) == (each["type"] == OF_VALIDATION)]


def _input_of(error: dict[str, Any]) -> Any:
    return error.get("extra_info", {}).get("input_name")

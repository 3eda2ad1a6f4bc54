"""The one place where all blocks of a network can be surrounded; what it is handed stands in the networks' modules."""

from __future__ import annotations

STACK_HOOK = "opensora_stack_hook"
"""Key of ``transformer_options``."""

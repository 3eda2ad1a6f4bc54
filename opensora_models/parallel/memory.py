"""What a rank holds of a call beside the weights, which every rank has whole.

Around the blocks every rank has all tokens, since it is handed all inputs; inside them its own. Counted by following
every allocation of shared forwards, see tests/unit/test_parallel_memory.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .choice import plan_of_call
from .clips import Clip
from .plan import Plan
from .shares import even_shares
from .traffic import Link

# In tensors of one value per token of the batch and hidden channel.
AROUND_TENSORS = 4.2
"""Of all tokens, while they are embedded, and while the parts are joined and the last layer reads them."""
BESIDE_TENSORS = 1.1
"""Of all tokens, while the blocks compute: the embedded tokens, and a little. Where a row is shared, the
own ones of them are a copy."""
SURE = 1.05
"""What is told rather than less."""


@dataclass(frozen=True)
class Sharing:
    """Among how many ranks a MODEL's calls are shared, and by which link that is known."""

    ranks: int
    link: Link | None = None

    def plan(self, batch: int, clip: Clip) -> Plan:
        """Of a call with so many rows."""
        return plan_of_call(batch, clip, self.ranks, self.link)

    def bytes_of_call(self, batch: int, clip: Clip, size: int, blocks: Callable[[float], float]) -> float:
        """Peak bytes of activations of a call on the rank that holds most; never less than that.

        ``size``: bytes of a number. ``blocks``: peak bytes of a forward for so many numbers in its tokens, as one
        process computes it.
        """
        plan = self.plan(batch, clip)
        whole = batch * clip.values
        rows = max(len(span) for span in even_shares(batch, plan.rows))
        own = rows * clip.values * clip.shares(plan.sequence).largest
        inside = max(blocks(own), clip.exchanged(plan.sequence) * own * size)
        inside += (BESIDE_TENSORS * whole + (plan.sequence > 1) * own) * size + clip.tables
        return SURE * max(inside, AROUND_TENSORS * whole * size)

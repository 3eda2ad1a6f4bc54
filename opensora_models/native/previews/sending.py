"""A wrapper on the MODEL that shows its runs as they go: small pictures of all latent frames, sent to the page.

ComfyUI's own preview of a step stays as it is; this is an event beside it, for the page that started the run alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...previews.pictures import Mode, clip_picture
from ...previews.throttle import Throttle
from ..messages import get_executing_context
from ..model.base_model import release_of
from ..page_settings import page_setting
from ..running_graph import graph_of
from .colours import previews_on, recall_colours

KEY = "opensora_preview"
EVENT = "opensora.preview"
"""What the page listens to, ``js/preview/extension.js``."""
SETTING = "OpenSora.Preview.Mode"

_segment: ContextVar[tuple[int, int]] = ContextVar("opensora_segment", default=(0, 1))


@contextmanager
def showing_segment(number: int, count: int) -> Iterator[None]:
    """Previews inside the block are of segment ``number``, from 0, of a video of ``count``."""
    token = _segment.set((number, count))
    try:
        yield
    finally:
        _segment.reset(token)


def show_runs(model: ModelPatcher) -> None:
    """Let every run of a MODEL be seen, in the colours of the VAE that was used with its release before."""
    release = release_of(model)
    if release is not None:
        recall_colours(release)
    if not model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, seen)


def seen(
    executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any = None, *args: Any,
    **kwargs: Any,
) -> Tensor:  # fmt: skip
    """ComfyUI's ``Sampler.sample``, with an event at its steps where somebody looks."""
    viewer = _viewer()
    if viewer is None:
        return executor(guider, sigmas, extra_args, callback, *args, **kwargs)
    format = guider.inner_model.latent_format

    def after_step(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        # Ours first: the page then knows already that a moving preview is there when ComfyUI's still one comes.
        viewer.show(step, steps, denoised, format)
        if callback is not None:
            callback(step, denoised, x, steps)

    return executor(guider, sigmas, extra_args, after_step, *args, **kwargs)


def preview_mode() -> Mode:
    """The page's setting; the loop where it says nothing that is known."""
    wanted = page_setting(SETTING)
    return next((mode for mode in Mode if mode.value == wanted), Mode.LOOP)


@dataclass
class Viewer:
    """The page that looks at one run: ``node`` and ``run`` are the parts of the event that stay the same."""

    server: Any
    client: str
    mode: Mode
    run: dict[str, Any]
    throttle: Throttle = field(default_factory=Throttle)

    def show(self, step: int, steps: int, denoised: Tensor, format: Any) -> None:
        """Send what the clip [B, C, T, h, w] looks like after a step, unless that was done just now."""
        if denoised.ndim != 5 or format.latent_rgb_factors is None or not self.throttle.due() or not self._connected():
            return
        if denoised.device.type == "cuda":
            torch.cuda.synchronize(denoised.device)  # the step itself is not the preview's cost
        with self.throttle.spending():
            event = {**self.run, **_described(denoised, self.mode, format), "step": step + 1, "steps": steps}
            self.server.send_sync(EVENT, event, self.client)

    def _connected(self) -> bool:
        """Whether the page is there at the moment; one that is loaded again comes back under the same name."""
        return self.client in getattr(self.server, "sockets", ())


def _described(denoised: Tensor, mode: Mode, format: Any) -> dict[str, Any]:
    factors, bias = format.latent_rgb_factors, format.latent_rgb_factors_bias
    return clip_picture(denoised, mode, torch.tensor(factors), None if bias is None else torch.tensor(bias))


def _viewer() -> Viewer | None:
    """Who looks at the run that begins; None where previews are off or nobody asked for the run by a page."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    client, context = getattr(server, "client_id", None), get_executing_context and get_executing_context()
    if client is None or context is None or not previews_on():
        return None
    mode = preview_mode()
    if mode is Mode.OFF:
        return None
    segment, segments = _segment.get()
    run = {
        "node": _shown_node(context.node_id),
        "prompt_id": context.prompt_id,
        "graph": graph_of(server, context.prompt_id),
        "segment": segment + 1,
        "segments": segments,
    }
    return Viewer(server, client, mode, run)


def _shown_node(node: str) -> str:
    """The node that the page has; one that another node made of itself is shown as that one."""
    try:
        from comfy_execution.progress import get_progress_state
    except ImportError:
        return node
    try:
        return str(get_progress_state().dynprompt.get_display_node_id(node))
    except (AttributeError, KeyError):
        return node

"""The nodes people see, in the order of a graph: size, load, text, references, sample, decode."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..opensora_models.native.core import marks, startup
from ..opensora_models.native.sampling.samplers import register_scheduler
from ..opensora_models.native.stored import remove_expired
from ..opensora_models.parallel.workers import clear_leftovers
from .calibration import CalibrateStepCache
from .conditioning_files import LoadConditioning, SaveConditioning
from .decode import Decode, DecodeToVideo, LoadLatent
from .door import guilty_input
from .encode import Encode
from .guidance import FlowSampler, GuidancePatch, Guider
from .guidance_over_time import GuidanceCurve
from .long_video import LongVideoSampler
from .model_loader import ModelLoader
from .old_packs import register_old_packs
from .parallel import Parallel
from .prompts import PromptBuilder, PromptRequest, PromptSegments
from .references import PlaceReferences, Reference
from .reports import Reconstruction
from .sampling import Sampler
from .sigmas import ModelSampling, Sigmas
from .size import EmptyLatent, Size
from .step_cache import StepCache
from .stored import StoredWork
from .strength_over_clip import StrengthCurve
from .text import NullText, TextEncode
from .text_encoder_loader import TextEncoderLoader
from .timeline import Timeline
from .vae_loader import VAELoader

NODES: list[type[io.ComfyNode]] = [
    Size,
    EmptyLatent,
    ModelLoader,
    TextEncoderLoader,
    VAELoader,
    PromptBuilder,
    PromptSegments,
    PromptRequest,
    TextEncode,
    NullText,
    SaveConditioning,
    LoadConditioning,
    Reference,
    StrengthCurve,
    PlaceReferences,
    Timeline,
    Sampler,
    LongVideoSampler,
    Sigmas,
    ModelSampling,
    Guider,
    GuidancePatch,
    GuidanceCurve,
    FlowSampler,
    StepCache,
    CalibrateStepCache,
    Parallel,
    Encode,
    Decode,
    DecodeToVideo,
    LoadLatent,
    Reconstruction,
    StoredWork,
]


class OpenSoraExtension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def on_load(self) -> None:
        """Called once before the nodes are asked for."""
        startup.start()
        marks.register(guilty_input)
        register_scheduler()
        remove_expired()
        clear_leftovers()
        await register_old_packs()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

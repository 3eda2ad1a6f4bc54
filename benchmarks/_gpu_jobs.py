"""What ``gpu.py`` measures, job by job, in order of worth."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _clips import ACHIEVABLE, CLIPS, Clip, Networks, bytes_of, call_of
from _kitchen import fused
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensora.opensora_models.caching.stack import StackCache
from opensora.opensora_models.caching.tables import StepTable
from opensora.opensora_models.checkpoint.opening import open_checkpoint
from opensora.opensora_models.transformer.attention import plain_attention
from opensora.opensora_models.vae.needs import decode_bytes, encode_bytes, fitting
from opensora.opensora_models.vae.tiled import TiledAutoencoder

Result = dict[str, Any]
HUGE = 1e15
"""Operations of a row from which one timed call is enough."""
TABLE = StepTable("10", (1.0, 0.5))
"""Any table with a step that reuses: one call of each kind is timed."""
SHARES = {"60 %": 0.6, "40 %": 0.4}
VAE_CLIPS = (
    *(("1.2", (51, 480, 848)), ("1.2", (51, 720, 1280)), ("1.3", (113, 720, 1280))),
    *(("2.0", (129, 192, 336)), ("2.0", (129, 576, 1024)), ("2.0-hc", (128, 576, 1024))),
)


@dataclass(frozen=True)
class Place:
    """Where jobs run. ``repeats``: timed calls after a first one."""

    device: torch.device
    dtype: torch.dtype
    networks: Networks
    dry: bool
    repeats: int = 3

    def free(self) -> int:
        """Bytes of memory that are free."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 8 * 2**30

    def wait(self) -> None:
        """For the device to be done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Job:
    """``seconds``: what it may take on a card that reaches a third of the limit, for the budget."""

    name: str
    seconds: float
    run: Callable[[Place], Result]


def timed(call: Callable[[], object], place: Place, repeats: int | None = None) -> Result:
    """Median seconds of a call after a first one, and what the device's memory grew by at its peak (None on a CPU)."""
    call()
    place.wait()
    cuda, before = place.device.type == "cuda", 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(place.device)
        before = torch.cuda.memory_allocated(place.device)
    seconds = []
    for _ in range(repeats or place.repeats):
        start = time.perf_counter()
        call()
        place.wait()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(place.device) - before if cuda else None
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "peak_bytes": peak}


def rows_job(clip: Clip, counts: tuple[int, ...], place: Place, *, kernels: bool = False) -> Result:
    """Calls of one and more rows: seconds of a row, of the released run, and the share of the physical limit."""
    network = place.networks.of(clip)
    options: dict[str, Any] = {}
    if kernels:
        arithmetic = fused(network)
        if arithmetic is None:
            return {"skipped": "comfy_kitchen cannot be imported"}
        options = {"transformer_options": {"opensora_arithmetic": arithmetic}}
    found: Result = {"weights_bytes": bytes_of(network), "target_run": clip.target}
    for rows in counts:
        call = call_of(clip, network, rows, place.device, place.dtype)
        result = timed(partial(call, **options), place, 1 if (clip.operations or 0) > HUGE else None)
        found[f"{rows} row(s)"] = {**result, **figures(clip, result["seconds"] / rows)}
    return found


def figures(clip: Clip, row: float) -> Result:
    """What the seconds of one row mean."""
    return {
        "row": row,
        "run": row * clip.rows,
        "run_is": f"extrapolated from one call, {clip.rows} rows",
        "share_of_limit": None if clip.operations is None else clip.operations / ACHIEVABLE / row,
    }


def attention_job(clip: Clip, place: Place) -> Result:
    """Every shape attention is called with: which kernel PyTorch chooses, and the seconds of each that can."""
    seen: dict[str, tuple[Any, ...]] = {}

    def watching(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options: Any) -> Tensor:
        parts = [q, k, v]
        if not options.get("skip_reshape"):
            parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts]
        name = f"{'x'.join(map(str, parts[0].shape))}, {parts[1].shape[-2]} keys{', mask' if mask is not None else ''}"
        seen.setdefault(name, ([torch.empty_like(part).copy_(part) for part in parts], mask))
        return plain_attention(q, k, v, heads, mask, **options)

    network = place.networks.of(clip)
    before, network.attention = network.attention, watching
    try:
        call_of(clip, network, 1, place.device, place.dtype)()
    finally:
        network.attention = before
    return {name: _kernels(*inputs, place) for name, inputs in seen.items()}


def _kernels(parts: list[Tensor], mask: Tensor | None, place: Place) -> Result:
    call = partial(F.scaled_dot_product_attention, *parts, attn_mask=mask)
    number = torch._fused_sdp_choice(*parts, attn_mask=mask)
    chosen = next((kind.name for kind in _backends() if int(kind) == number), str(number))
    found: Result = {"chosen": chosen, "seconds": timed(call, place)["seconds"]}
    for kind in _backends():
        if place.device.type != "cuda" or kind.name in ("MATH", "ERROR", "OVERRIDEABLE"):
            continue
        try:
            with sdpa_kernel([kind]):
                found[kind.name] = timed(call, place)["seconds"]
        except RuntimeError as error:
            found[kind.name] = str(error).splitlines()[0][:100]
    return found


def _backends() -> list[Any]:
    return list(SDPBackend.__members__.values())


def cache_job(clip: Clip, place: Place) -> Result:
    """A call that is computed under the step cache and one that reuses: what a run takes at some shares."""
    network, cache = place.networks.of(clip), StackCache(TABLE)
    call = call_of(clip, network, 1, place.device, place.dtype)

    def at(level: float) -> Callable[[], object]:
        def once() -> object:
            hook = cache.around(["a row"], level)
            return call(transformer_options={"opensora_stack_hook": hook})

        return once

    plain, reused = timed(call, place), timed(at(0.9), place)
    fresh = StackCache(TABLE)

    def computed() -> object:
        fresh._rows.clear()
        hook = fresh.around(["a row"], 1.0)
        return call(transformer_options={"opensora_stack_hook": hook})

    kept = timed(computed, place)
    runs = {
        name: clip.rows * (share * kept["seconds"] + (1 - share) * reused["seconds"]) for name, share in SHARES.items()
    }
    return {
        "without": plain,
        "computed": kept,
        "reused": reused,
        "rows": {"computed": cache.computed_rows, "reused": cache.reused_rows},
        "kept_bytes_of_a_row": cache.most_bytes,
        "run": {"100 %": clip.rows * plain["seconds"], **runs},
    }


def compile_job(clip: Clip, place: Place) -> Result:
    """The network as PyTorch compiles it, beside the same as it is."""
    network = place.networks.of(clip)
    backend = "eager" if place.dry else "inductor"
    compiled = torch.compile(network, backend=backend)
    call = call_of(clip, network, 1, place.device, place.dtype)
    start = time.perf_counter()
    call(compiled)
    place.wait()
    first = time.perf_counter() - start
    eager, fast = timed(call, place), timed(partial(call, compiled), place)
    ratio = eager["seconds"] / fast["seconds"]
    return {"backend": backend, "compiling": first, "eager": eager, "compiled": fast, "ratio": ratio}


def vae_job(name: str, size: tuple[int, int, int], place: Place) -> Result:
    """Decoding and encoding with the plan that fits: seconds, and the peak beside what the planner said."""
    from vae import build  # which asks for the pack when it is imported

    place.networks.clear()
    model = build(name, 8 if place.dry else 128, place.device, place.dtype)
    frames, height, width = (17, 64, 96) if place.dry else size
    if isinstance(model, TiledAutoencoder):
        frames = model.release.latents.lengths.nearest(frames)
    cells = (model.latents_of(frames), height // model.space_factor, width // model.space_factor)
    found: Result = {"size": [frames, height, width]}
    latents = torch.randn(1, model.latent_channels, *cells, device=place.device, dtype=place.dtype)
    video = torch.rand(1, 3, frames, height, width, device=place.device, dtype=place.dtype) * 2 - 1
    for way, given, told in (("decode", latents, decode_bytes), ("encode", video, encode_bytes)):
        plan = fitting(model, given.shape, given.element_size(), place.free(), decoding=way == "decode")
        out = torch.empty(video.shape, dtype=place.dtype)  # core makes it in memory that is not the card's
        decode, encode = partial(model.decode, given, None, plan, out=out), partial(model.encode, given, plan)
        call = decode if way == "decode" else encode
        found[way] = {**timed(call, place, 1), "planned_bytes": told(model, given.shape, given.element_size(), plan)}
    return found


def load_job(clip: Clip, place: Place) -> Result:
    """A file of the network's weights, read by the pack's reader and brought to the device."""
    network = place.networks.of(clip)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, path)
        size = path.stat().st_size

        def load() -> object:
            weights = open_checkpoint(path).load()
            return [value.to(place.device) for value in weights.values()]

        result = timed(load, place, 1)
    return {**result, "file_bytes": size, "bytes_a_second": size / result["seconds"], "from": "the page cache"}


def jobs(dry: bool) -> Iterator[Job]:
    """All jobs, the most telling first."""
    clips = {name: clip.shrunk() if dry else clip for name, clip in CLIPS.items()}
    long, video, tall, short, huge = clips.values()

    def calls(clip: Clip, count: int) -> float:
        return 1.0 if clip.operations is None else 8 + 3 * count * clip.operations / ACHIEVABLE

    for clip in (long, video, tall, short):
        yield Job(f"{clip.name}: rows", calls(clip, 12), partial(rows_job, clip, (1, 2)))
    yield Job(f"{huge.name}: one row", calls(huge, 2), partial(rows_job, huge, (1,)))
    for clip in (long, video, tall):
        yield Job(f"{clip.name}: fused kernels", calls(clip, 12), partial(rows_job, clip, (1, 2), kernels=True))
    for clip in (short, long):
        yield Job(f"{clip.name}: step cache", calls(clip, 8), partial(cache_job, clip))
    for clip in (long, video, short):
        yield Job(f"{clip.name}: attention", calls(clip, 8), partial(attention_job, clip))
    for name, size in VAE_CLIPS:
        yield Job(f"{name} {'x'.join(map(str, size))}: autoencoder", 1.0 if dry else 40.0, partial(vae_job, name, size))
    yield Job(f"{short.name}: loading", 1.0 if dry else 20.0, partial(load_job, replace(short, small=dry)))
    for clip in (short, video, long):
        yield Job(f"{clip.name}: compiled", 1.0 if dry else 90.0, partial(compile_job, clip))

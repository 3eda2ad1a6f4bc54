"""A run of the MODEL tells the page that started it what the clip looks like, in the colours of the VAE."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from support.native import conditioning, empty, load, sample
from support.pack import PACK_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

DEMO = PACK_ROOT / "demo" / "models" / "vae"
RUN = {"steps": 3, "cfg": 4.0, "seed": 1, "guidance": "automatic", "image_cfg": 5.0, "renoise_given": True}
LONG = {
    "segments": 3, "overlap": 5, "overlap_strength": 0.0, "drift_control": 0.0, "seeds": "new for every segment",
    "method": "automatic", "resume": False,
}  # fmt: skip


class Page:
    """Stands in for ComfyUI's server and the page at its other end."""

    def __init__(self) -> None:
        self.client_id: str | None = "a page"
        self.sockets: dict[str, Any] = {"a page": None, "another page": None}
        self.prompt_queue = SimpleNamespace(currently_running={})
        self.events: list[dict[str, Any]] = []
        self.clients: set[str | None] = set()
        self.texts: list[str] = []
        self.on_event: Callable[[], None] = lambda: None

    def send_sync(self, event: str, data: Any, client: str | None = None) -> None:
        if event == "opensora.preview":
            self.events.append(data)
            self.clients.add(client)
            self.on_event()

    def send_progress_text(self, text: str, node: str, *rest: Any) -> None:
        self.texts.append(text)


@pytest.fixture
def page(comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Previews are on, a page listens, and node 7 of prompt p runs; whatever is learnt of colours is forgotten."""
    import folder_paths
    import server
    from comfy.cli_args import LatentPreviewMethod, args
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import reset_progress_state
    from comfy_execution.utils import CurrentNodeContext

    from opensora.opensora_models.native.model.latent_formats import LATENT_FORMATS
    from opensora.opensora_models.previews import throttle

    page = Page()
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    monkeypatch.setattr(server.PromptServer, "instance", page, raising=False)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(throttle.Throttle, "due", lambda self: True)  # tiny steps are over in no time
    for format in LATENT_FORMATS.values():
        for name in ("latent_rgb_factors", "latent_rgb_factors_bias"):
            monkeypatch.setattr(format, name, getattr(format, name))
    reset_progress_state("p", DynamicPrompt({"7": {}}))
    with CurrentNodeContext("p", "7"):
        yield page


def picture(event: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(event["picture"].partition(",")[2]))).convert("RGB")


def set_mode(folder: Path, mode: Any) -> None:
    import json

    (folder / "default").mkdir(exist_ok=True)
    (folder / "default" / "comfy.settings.json").write_text(json.dumps({"OpenSora.Preview.Mode": mode}))


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0", "2.0 high compression"])
def test_every_latent_frame_of_every_step_is_shown_on_the_node_that_runs(
    page: Page, tiny_models: Path, version: str
) -> None:
    model = load(tiny_models, version)
    core: list[int] = []
    done = sample(model, empty(version, frames=5, batch=2), callback=lambda step, *rest: core.append(step))
    assert [(event["step"], event["steps"]) for event in page.events] == [(1, 3), (2, 3), (3, 3)]
    assert core == [0, 1, 2], "ComfyUI's own preview is asked as before"
    assert page.clients == {"a page"}
    event = page.events[-1]
    assert (event["node"], event["prompt_id"], event["graph"]) == ("7", "p", None)
    assert (event["frames"], event["columns"], event["latent_frames"], event["clips"]) == (5, 3, 5, 2)
    assert (event["segment"], event["segments"]) == (1, 1)
    assert picture(event).size == (3 * event["width"], 2 * event["height"]) == (30, 16)
    assert len(picture(event).convert("L").getcolors()) > 20, "something is to be seen"
    page.client_id = None
    assert torch.equal(done, sample(model, empty(version, frames=5, batch=2))), "nothing of the run depends on it"
    assert len(page.events) == 3


def test_nothing_is_computed_where_nobody_looks(
    page: Page, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import LatentPreviewMethod, args

    from opensora.opensora_models.native.previews import sending

    monkeypatch.setattr(sending, "clip_picture", lambda *given: pytest.fail("a picture was made"))
    model = load(tiny_models)
    page.sockets.clear()
    sample(model, empty())  # the page is gone for the moment
    page.client_id = None
    sample(model, empty())  # a program queued the prompt and does not listen
    page.client_id, page.sockets = "a page", {"a page": None}
    set_mode(tmp_path, "off")
    sample(model, empty())
    set_mode(tmp_path, "loop")
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    sample(model, empty())
    assert page.events == []


@pytest.mark.parametrize(("mode", "frames"), [("first", 1), ("sheet", 9), ("loop", 15), ("no such", 15), ([1], 15)])
def test_the_pages_setting_says_how_much_is_made(
    page: Page, tiny_models: Path, tmp_path: Path, mode: Any, frames: int
) -> None:
    set_mode(tmp_path, mode)
    sample(load(tiny_models), empty(frames=15), steps=1)
    assert [event["frames"] for event in page.events] == [frames]


def test_a_page_that_comes_back_is_shown_the_next_step(page: Page, tiny_models: Path) -> None:
    def leave_and_return() -> None:
        page.sockets = {} if len(page.events) == 1 else {"a page": None}

    page.on_event = leave_and_return
    steps: list[int] = []

    def after(step: int, *rest: Any) -> None:
        steps.append(step)
        if step == 1:
            page.sockets = {"a page": None}  # loaded again, under the same name

    sample(load(tiny_models), empty(), steps=4, callback=after)
    assert [event["step"] for event in page.events] == [1, 3, 4] and steps == [0, 1, 2, 3]


def test_an_interrupt_ends_the_run_and_the_next_one_is_shown(page: Page, tiny_models: Path) -> None:
    import comfy.model_management as management

    model = load(tiny_models)
    page.on_event = management.interrupt_current_processing
    with pytest.raises(management.InterruptProcessingException):
        sample(model, empty(), steps=5)
    management.interrupt_current_processing(False)
    assert len(page.events) == 1
    page.on_event = lambda: None
    sample(model, empty(), steps=2)
    assert [event["step"] for event in page.events] == [1, 1, 2]


def test_our_sampler_and_the_long_video_name_what_is_sampled(page: Page, tiny_models: Path) -> None:
    from opensora.nodes.long_video import LongVideoSampler
    from opensora.nodes.sampling import Sampler

    model, words = load(tiny_models, "1.3"), {"positive": conditioning(), "negative": conditioning(5)}
    given = {"model": model, **words, "latent": {"samples": empty("1.3", frames=10)}, **RUN}
    with torch.inference_mode():
        Sampler.execute(**given, denoise=1.0)
        assert [event["step"] for event in page.events] == [1, 2, 3], "oscillating guidance is one step each"
        page.events.clear()
        LongVideoSampler.execute(**given, **LONG)
    named = [(event["segment"], event["segments"]) for event in page.events]
    assert named == [(1, 3)] * 3 + [(2, 3)] * 3 + [(3, 3)] * 3
    assert {event["latent_frames"] for event in page.events} == {10}


def test_context_windows_show_the_whole_clip(page: Page, tiny_models: Path) -> None:
    import comfy.context_windows as windows

    model = load(tiny_models)
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        fuse_method=windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=5,
        context_overlap=0,
        dim=2,
    )
    model.model_options["context_handler"] = handler
    sample(model, empty(frames=15), steps=2)
    assert [(event["step"], event["frames"]) for event in page.events] == [(1, 15), (2, 15)]


def test_a_node_made_by_another_and_the_workflow_are_named(page: Page, tiny_models: Path) -> None:
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import reset_progress_state

    made = DynamicPrompt({"3": {}})
    made.add_ephemeral_node("7", {}, "3", "3")
    reset_progress_state("p", made)
    extra = {"extra_pnginfo": {"workflow": {"id": "the workflow"}}}
    page.prompt_queue.currently_running = {0: (0, "other", {}, {}, []), 1: (1, "p", {}, extra, [])}
    sample(load(tiny_models), empty(), steps=1)
    assert [(event["node"], event["graph"]) for event in page.events] == [("3", "the workflow")]


def colours_of(release: str) -> tuple[Any, Any]:
    from opensora.opensora_models.native.model.latent_formats import LATENT_FORMATS

    format = LATENT_FORMATS[release]
    return format.latent_rgb_factors, format.latent_rgb_factors_bias


def error(vae: Any, release: str) -> float:
    """How far a preview of an encoded picture is from the picture, in the mean, in [0, 255]."""
    from opensora.opensora_models.native.model.latent_formats import LATENT_FORMATS
    from opensora.opensora_models.previews.pictures import Mode, clip_picture
    from support.vaes import smooth_video

    clip = (smooth_video(1, 128, 192)[0].movedim(0, -1) + 1).expand(5, -1, -1, -1) / 2
    format = LATENT_FORMATS[release]()
    latents = format.process_in(vae.encode(clip).float())
    factors, bias = format.latent_rgb_factors, format.latent_rgb_factors_bias or [0.0, 0.0, 0.0]
    shown = picture(clip_picture(latents, Mode.FIRST, torch.tensor(factors), torch.tensor(bias)))
    wanted = torch.nn.functional.adaptive_avg_pool2d(clip[:1].movedim(-1, 1), (shown.height, shown.width))
    got = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(shown.height, shown.width, 3)
    return float((got.float() - 255 * wanted[0].movedim(0, -1)).abs().mean())


@pytest.mark.parametrize("release", ["1.2", "1.3"])
def test_colours_are_fitted_once_per_vae_and_are_right(
    page: Page, tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opensora.opensora_models.native.messages import speaking
    from opensora.opensora_models.native.previews import colours
    from opensora.opensora_models.native.vae.vae import load_vae

    fits: list[int] = []
    fit = colours.fit_colours
    monkeypatch.setattr(colours, "fit_colours", lambda *given: (fits.append(1), fit(*given))[1])
    with torch.inference_mode():
        vae = load_vae(DEMO / f"opensora-tiny-vae-v{release}.safetensors")
        known = error(vae, release)
        with speaking() as said:
            colours.learn_colours(vae)
        fitted = error(vae, release)
        assert fitted < 20 and fitted < known / 2, f"colours are off by {fitted:.1f} of 255, without a fit {known:.1f}"
        learnt = colours_of(release)
        assert len(said) == 1 and "preview_colours.json" in said[0] and (tmp_path / "__opensora").is_dir()
        nothing = colours.Colours(((0.0, 0.0, 0.0),) * vae.latent_channels, (0.0, 0.0, 0.0))
        colours.use_colours(vae.network.release, nothing)
        with speaking() as said:
            colours.learn_colours(load_vae(DEMO / f"opensora-tiny-vae-v{release}.safetensors"))
    assert fits == [1] and said == [] and colours_of(release) == learnt, "kept, and not fitted again"


def test_a_model_takes_the_colours_that_were_learnt_before(page: Page, tiny_models: Path) -> None:
    """In another session: the file is there and no VAE was loaded yet."""
    from opensora.opensora_models.native.previews import colours
    from opensora.opensora_models.previews.colours_file import keep_colours

    known = colours_of("2.0"), colours_of("1.3")
    kept = colours.Colours(((0.1, 0.2, 0.3),) * 4, (0.0, 0.5, 0.0))
    keep_colours(colours._file(), "some file", "1.2", kept)
    keep_colours(colours._file(), "a damaged entry", "2.0", colours.Colours(((0.1, 0.2, 0.3),) * 3, (0.0, 0.5, 0.0)))
    for version in ("1.2", "1.3", "2.0"):
        load(tiny_models, version)
    assert colours_of("1.2") == ([[0.1, 0.2, 0.3]] * 4, [0.0, 0.5, 0.0])
    assert (colours_of("2.0"), colours_of("1.3")) == known, "those of another shape are not taken"


def test_loading_a_vae_computes_nothing_while_previews_are_off_and_never_fails(
    page: Page, tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy.cli_args import LatentPreviewMethod, args

    from opensora.opensora_models.native.previews.colours import learn_colours
    from opensora.opensora_models.native.vae.vae import load_vae

    before = colours_of("1.2")
    vae = load_vae(DEMO / "opensora-tiny-vae-v1.2.safetensors")
    monkeypatch.setattr(vae, "encode", lambda pixels: torch.full((1, 4, 2, 8, 8), float("nan")))
    learn_colours(vae)
    assert "not numbers" in caplog.text
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    monkeypatch.setattr(vae, "encode", lambda pixels: pytest.fail("something was encoded"))
    learn_colours(vae)
    assert colours_of("1.2") == before and not (tmp_path / "__opensora" / "preview_colours.json").exists()

"""Nothing is re-read, cut or left out without a sentence on the node, in its report and in the log."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from opensora.opensora_models.checkpoint.settings import NAME as SETTINGS
from support.core_nodes import call
from support.native import conditioning, load, randn

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.comfy]


class Page:
    """Takes the place of ComfyUI's server: what was shown on which node."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self.client_id: str | None = "window"
        self.kept: dict[str, str] = {}

    def send_progress_text(self, text: str, node_id: str) -> None:
        self.shown[node_id] = text

    def send_sync(self, event: str, data: dict[str, str], client: str) -> None:
        if event == "opensora.told":
            assert client == self.client_id
            self.kept[data["node"]] = data["text"]


@pytest.fixture
def page(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    import server

    page = Page()
    monkeypatch.setattr(server.PromptServer, "instance", page, raising=False)
    return page


def run(node: Any, **values: Any) -> Any:
    """Run a node as the executor does, under the id "7"."""
    from comfy_execution.utils import CurrentNodeContext

    with CurrentNodeContext("prompt", "7"), torch.inference_mode():
        return node.execute(**values).result


def sampler_values(**changed: Any) -> dict[str, Any]:
    return {
        "positive": conditioning(), "negative": conditioning(5), "steps": 1, "cfg": 1.0, "seed": 1, "denoise": 1.0,
        "guidance": "automatic", "image_cfg": 5.0, "renoise_given": True, **changed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def models(comfy: Path, tiny_models: Path) -> dict[str, Any]:
    return {version: load(tiny_models, version) for version in ("1.2", "1.3")}


@pytest.mark.parametrize(
    ("version", "latent", "words"),
    [
        ("1.3", {"samples": torch.zeros(1, 4, 15, 4, 4)}, ["made for Open-Sora 1.2", "51 frames", "49 frames"]),
        ("1.2", {"samples": torch.zeros(1, 16, 15, 4, 4)}, ["made for Open-Sora 1.3", "49 frames", "51 frames"]),
        ("1.2", {"samples": torch.zeros(1, 4, 4, 4)}, ["single picture", "1 frame"]),
        ("1.3", {"samples": torch.zeros(1, 4, 4, 4)}, ["single picture", "1 frame"]),
        ("1.3", {"samples": torch.zeros(1, 16, 7, 4, 4)}, ["7 latent frames", "21 frames"]),
        ("1.2", {"samples": torch.zeros(1, 48, 5, 2, 2), "downscale_ratio_spacial": 16}, ["5×2×2", "5×4×4"]),
    ],
)
@pytest.mark.parametrize("name", ["OSoraSampler", "OSoraSigmas", "OSoraModelSampling"])
def test_a_clip_made_for_another_version_is_told(
    page: Page, models: dict[str, Any], caplog: pytest.LogCaptureFixture, name: str, version: str,
    latent: dict[str, Any], words: list[str],
) -> None:  # fmt: skip
    from opensora.nodes import NODES

    node = next(node for node in NODES if node.define_schema().node_id == name)
    shift = {"transform_scale": 1.0, "count_frames": True, "rounding": "exact"}
    values = {
        "OSoraSampler": sampler_values(),
        "OSoraSigmas": {"steps": 2, "denoise": 1.0, "discrete": False, **shift},
        "OSoraModelSampling": shift,
    }[name]
    with caplog.at_level(logging.INFO, logger="opensora"):
        result = run(node, model=models[version], latent=latent, **values)
    for word in words:
        assert word in page.shown["7"]
        assert word in caplog.text
        if name == "OSoraSampler":
            assert word in result[1]


def test_a_clip_of_the_models_own_version_says_nothing(page: Page, models: dict[str, Any]) -> None:
    from opensora.nodes.sampling import Sampler

    for version, channels in (("1.2", 4), ("1.3", 16)):
        for frames in (1, 5, 15):
            latent = {"samples": torch.zeros(1, channels, frames, 4, 4)}
            assert run(Sampler, model=models[version], latent=latent, **sampler_values())[1] == ""
    assert page.shown == {}


def test_content_of_another_version_is_refused_before_prompts(models: dict[str, Any]) -> None:
    from opensora.nodes.sampling import Sampler

    waiting = sampler_values(positive=None, negative=None)
    with pytest.raises(ValueError, match="16 channels but the model is Open-Sora 1.2"):
        Sampler.check_lazy_status(model=models["1.2"], latent={"samples": randn(1, 16, 5, 4, 4)}, **waiting)


def reference(**changed: Any) -> dict[str, Any]:
    values = {
        "vae": None, "clip_latent": {"samples": torch.zeros(1, 4, 15, 4, 4)}, "image": None, "placement": "at position",
        "position": 0, "frames": 0, "strength": 0.0, "references": None, "second_image": None, "latent": None,
        "position_unit": "latent frame", "resize": "crop", "segment": 0,
    }  # fmt: skip
    return {**values, **changed}


class Encoder:
    """Takes the place of a 1.2 VAE."""

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 4, max(1, pictures.shape[0] // 17 * 5), 4, 4)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image": torch.zeros(1, 99, 64, 3)}, ["99x64", "32x32"]),
        ({"image": torch.zeros(1, 32, 32, 4)}, ["transparency"]),
        ({"latent": {"samples": torch.zeros(3, 4, 5, 4, 4)}}, ["batch of 3", "first one"]),
    ],
)
def test_what_a_reference_loses_is_told(page: Page, changed: dict[str, Any], words: list[str]) -> None:
    from opensora.nodes.references import Reference

    run(Reference, **reference(vae=Encoder(), **changed))
    assert all(word in page.shown["7"] for word in words), page.shown


def test_a_start_moved_to_a_group_is_told(page: Page) -> None:
    from opensora.nodes.references import PlaceReferences, Reference

    (chain,) = run(Reference, **reference(latent={"samples": torch.ones(1, 4, 5, 4, 4)}, position=4))
    latent = {"samples": torch.zeros(1, 4, 15, 4, 4)}
    values = {"method": "automatic", "mask_strategy": "", "align": True}
    report = run(PlaceReferences, references=chain, latent=latent, positive=conditioning(), negative=conditioning(),
                 **values)[4]  # fmt: skip
    assert "from latent frame 4 to 5" in report and "from latent frame 4 to 5" in page.shown["7"]
    assert page.kept == page.shown, "what keeps it readable after the run says the same"


def test_the_page_that_started_a_run_is_sent_what_to_keep_for_its_workflow(page: Page, monkeypatch: Any) -> None:
    """Others may show another workflow, whose nodes have the same numbers."""
    from comfy_execution.utils import CurrentNodeContext

    from opensora.opensora_models.native.messages import tell

    sent: list[tuple[dict[str, Any], str]] = []
    item = (0, "prompt", {}, {"extra_pnginfo": {"workflow": {"id": "mine"}}}, [])
    monkeypatch.setattr(page, "send_sync", lambda event, data, client: sent.append((data, client)))
    monkeypatch.setattr(page, "prompt_queue", SimpleNamespace(currently_running={0: item}), raising=False)
    with CurrentNodeContext("prompt", "7"):
        tell("A sentence.")
        monkeypatch.setattr(page, "client_id", None)
        tell("By a program.")
    event = {"node": "7", "text": "A sentence.", "prompt_id": "prompt", "graph": "mine"}
    assert sent == [(event, "window")]


def test_what_is_only_looked_at_is_not_told_twice(
    page: Page, models: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.nodes.sampling import Sampler

    latent = {"samples": torch.zeros(1, 4, 15, 4, 4)}
    with caplog.at_level(logging.INFO, logger="opensora"):
        Sampler.check_lazy_status(model=models["1.3"], latent=latent, **sampler_values(positive=None, negative=None))
        assert caplog.text == ""
        run(Sampler, model=models["1.3"], latent=latent, **sampler_values())
    assert caplog.text.count("made for Open-Sora 1.2") == 1


def test_work_the_machine_cannot_hold_is_refused_with_gigabytes(
    comfy: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    from opensora.nodes.size import EmptyLatent

    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: 1.5 * 2**30)
    with pytest.raises(ValueError, match=r"needs about [\d,.]+ GB of memory, and this machine has 1.5 GB free"):
        EmptyLatent.execute(version="1.3", height=4096, width=4096, frames=113, batch_size=1)
    EmptyLatent.execute(version="1.3", height=256, width=256, frames=113, batch_size=1)


def test_a_step_and_decoded_frames_beyond_the_machine_are_refused(
    comfy: Path, tiny_models: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    from opensora.nodes.decode import Decode
    from opensora.nodes.sampling import Sampler
    from opensora.opensora_models.native.vae.vae import load_vae

    vae = load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors")
    latent = {"samples": torch.zeros(1, 4, 5, 8, 8)}
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: 0.02 * 2**20)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="One step on latents of .* GB of memory"):
            Sampler.execute(model=models["1.2"], latent=latent, references=None, **sampler_values())
        with pytest.raises(ValueError, match="Holding 17 decoded frames of 64×64 pixels .* Decode to Video"):
            vae.decode(latent["samples"])
        with pytest.raises(ValueError, match="Holding 17 decoded frames"):
            Decode.execute(samples=latent, vae=vae, tile_size="256", filename_prefix="x", num_frames=0,
                           save_latent=False)  # fmt: skip


def test_a_node_that_is_not_ours_tells_a_thing_once(comfy: Path, caplog: pytest.LogCaptureFixture) -> None:
    from comfy_execution.utils import CurrentNodeContext

    from opensora.opensora_models.native.messages import tell

    for prompt, node in (("first", "3"), ("first", "4"), ("second", "4")):
        with CurrentNodeContext(prompt, node):
            for _ in range(2):  # the positive and the negative row
                tell("The text has 5 tokens.")
    tell("The text has 5 tokens.", "The text has 5 tokens.")
    assert caplog.text.count("The text has 5 tokens.") == 4


def test_what_a_reference_loses_is_told_on_its_node_and_in_the_next_ones_report(page: Page) -> None:
    from opensora.nodes.references import PlaceReferences, Reference

    (chain,) = run(Reference, **reference(vae=Encoder(), image=torch.zeros(1, 99, 64, 3), placement="first frame"))
    assert "99x64" in page.shown.pop("7")
    values = {"method": "automatic", "mask_strategy": "", "align": True}
    latent = {"samples": torch.zeros(1, 4, 15, 4, 4)}
    report = run(PlaceReferences, references=chain, latent=latent, positive=conditioning(), negative=conditioning(),
                 **values)[4]  # fmt: skip
    assert report.count("99x64") == 1 and "99x64" not in page.shown.get("7", "")


@pytest.mark.parametrize("ours", [True, False], ids=["Open-Sora Sampler", "KSampler"])
def test_a_cut_schedule_without_a_picture_is_told(page: Page, models: dict[str, Any], ours: bool) -> None:
    from comfy_execution.utils import CurrentNodeContext

    from opensora.nodes.sampling import Sampler

    def said(latent: torch.Tensor, denoise: float, number: str) -> str:
        if ours:
            run(Sampler, model=models["1.3"], latent={"samples": latent}, **sampler_values(denoise=denoise, steps=2))
            return page.shown.pop("7", "")
        with CurrentNodeContext(number, "9"), torch.inference_mode():
            call(
                "KSampler",
                model=models["1.3"],
                seed=1,
                steps=2,
                cfg=1.0,
                sampler_name="euler",
                scheduler="simple",
                positive=conditioning(),
                negative=conditioning(5),
                latent_image={"samples": latent},
                denoise=denoise,
            )
        return page.shown.pop("9", "")  # fmt: skip

    empty, filled = torch.zeros(1, 16, 5, 4, 4), randn(1, 16, 5, 4, 4)
    half = torch.cat([filled[:, :, :2], empty[:, :, 2:]], dim=2)
    assert "the latent is empty" in said(empty, 0.5, "first")
    assert "3 of its 5 latent frames are empty" in said(half, 0.5, "second")
    assert said(empty, 1.0, "third") == said(filled, 0.5, "fourth") == said(half, 1.0, "fifth") == ""


FOREIGN = {"1.3": {"hidden_size": 63}, "2.0": {"depth": 63}}
"""Settings beside a file that are for another model: they are left out deep inside the reading of files."""


@pytest.mark.parametrize("version", FOREIGN)
@pytest.mark.parametrize("ours", [True, False], ids=["Open-Sora Load Model", "Load Diffusion Model"])
def test_what_a_room_without_nodes_warns_of_stands_on_the_node_that_runs(
    page: Page, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ours: bool, version: str,
) -> None:  # fmt: skip
    import folder_paths
    from comfy_execution.utils import CurrentNodeContext

    from opensora.nodes.model_loader import ModelLoader
    from opensora.opensora_models.native.core import startup

    startup.start()
    [file] = (tiny_models / "diffusion_models").glob(f"random-v{version}.safetensors")
    with safe_open(file, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        known = json.loads((opened.metadata() or {}).get(SETTINGS, "{}"))
    name = f"foreign-{ours}-{version}.safetensors"
    save_file(weights, tmp_path / name, {SETTINGS: json.dumps({**known, **FOREIGN[version]})})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    if ours:
        chosen = {"weight_dtype": "default", "rounding": "accurate", "window": 0, "spatial_rotary": "automatic",
                  "rotation": "automatic", "modulations": "in the network"}  # fmt: skip
        run(ModelLoader, model_name=name, **chosen)
    else:
        with CurrentNodeContext(f"prompt {version}", "7"):
            call("UNETLoader", unet_name=name, weight_dtype="default")
    assert page.shown["7"].count("The settings beside the file are for another model") == 1, page.shown
    assert caplog.text.count("The settings beside the file are for another model") == 1
    assert page.kept == page.shown


def test_a_warning_of_a_writer_beside_the_work_stands_on_the_node_and_one_while_inputs_are_looked_at_does_not(
    page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy_execution.utils import CurrentNodeContext

    from opensora.opensora_models.native.core import startup
    from opensora.opensora_models.native.messages import hushed, speaking, tell, told
    from opensora.opensora_models.storage.beside import beside

    startup.start()
    logger = logging.getLogger("opensora")
    with CurrentNodeContext("prompt", "7"), speaking():
        tell("Said.")
        with beside() as writer:
            writer.start(lambda: logger.warning("Segment %d is not stored.", 3))
        with hushed():
            logger.warning("Looked at.")
        logger.warning("Segment 3 is not stored.")
        logger.info("For the log.")
        assert told() == page.shown["7"] == "Said.\nSegment 3 is not stored."
    logger.warning("No node runs.")
    assert list(page.shown) == ["7"] and "No node runs." in caplog.text

"""Peak memory and time of loading a full-width Open-Sora diffusion model of random bf16 parameters.

    python benchmarks/loading.py                      our loader
    python benchmarks/loading.py --version 2.0        one double and five single blocks of 2.0 (2.3 GB)
    python benchmarks/loading.py --core               ComfyUI's own loader on the same file
    python benchmarks/loading.py --dtype fp8_e4m3fn   kept in another dtype
    python benchmarks/loading.py --stored fp8         from a file in fp8 that is kept as it is

Makes the file in a temporary folder (removed at the end), loads it in a fresh process on the CPU, and prints the growth
of the process at its peak divided by the size of the file: its private memory, and apart from that the pages of files
that are mapped, which the system takes back whenever it wants to. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from support.random_weights import Shape, mmdit_shapes, stdit3_shapes  # noqa: E402

STDIT3 = {"hidden_size": 1152, "num_heads": 16, "depth": 28, "caption_channels": 4096}
MMDIT = {"hidden_size": 3072, "num_heads": 24, "double": 1, "single": 5}
"""Of 19 double and 38 single blocks: a peak beside the weights does not grow with their number."""

STORED = {"bf16": ("BF16", torch.bfloat16), "fp8": ("F8_E4M3", torch.float8_e4m3fn)}
DTYPES = ("bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2")
EVERY = 0.002  # seconds between two looks at the memory
RANDOM_BLOCK = 1 << 22  # values; repeating one block is as incompressible as a page cache needs


def shapes_of(version: str) -> dict[str, Shape]:
    """Names and shapes of the file."""
    return mmdit_shapes(version, **MMDIT) if version == "2.0" else stdit3_shapes(version, **STDIT3)


def write_file(path: Path, version: str, stored: str) -> None:
    """A file of random values at the released width, written without holding it in memory."""
    header: dict[str, dict[str, object]] = {}
    name_of_dtype, dtype = STORED[stored]
    end = 0
    for name, shape in shapes_of(version).items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": name_of_dtype, "shape": list(shape), "data_offsets": [start, end]}
    block = (torch.randn(RANDOM_BLOCK) * 0.02).to(dtype).view(torch.uint8).numpy().tobytes()
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])


def memory() -> dict[str, int]:
    """Bytes of this process in RAM: its own, and those of mapped files."""
    status = Path("/proc/self/status").read_text()
    found = {name: int(size) * 1024 for name, size in re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", status)}
    return {"private": found["RssAnon"], "mapped": found["RssFile"]}


class Peak:
    """Looks at the memory all the time between ``with`` and its end."""

    def __enter__(self) -> Peak:
        self.most, self._done = memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            self.most = {name: max(size, self.most[name]) for name, size in memory().items()}


def measure(path: Path, dtype: str, core: bool) -> dict[str, float]:
    """Loads the file in this process; sizes in bytes, time in seconds."""
    from support.comfyui import use_comfyui

    use_comfyui()
    import comfy.sd

    from opensora.opensora_models.native.core import detection as core_detection
    from opensora.opensora_models.native.model.loading import load_model

    core_detection.register()
    before, started = memory(), time.perf_counter()
    with torch.inference_mode(), Peak() as peak:
        model = comfy.sd.load_diffusion_model(str(path)) if core else load_model(path, dtype)
    result = {"seconds": time.perf_counter() - started, "model": model.model_size()}
    result |= {name: peak.most[name] - size for name, size in before.items()}
    return result | {f"{name} afterwards": memory()[name] - size for name, size in before.items()}


def main() -> None:
    """Makes the file, measures in a fresh process, prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", choices=("1.2", "1.3", "2.0"), default="1.2")
    parser.add_argument("--dtype", choices=DTYPES, help="weight_dtype of the loader; as stored where it is not given")
    parser.add_argument("--stored", choices=tuple(STORED), default="bf16", help="how the file keeps its weights")
    parser.add_argument("--core", action="store_true", help="measure ComfyUI's own loader")
    parser.add_argument("--file", type=option.file, help=argparse.SUPPRESS)
    options = parser.parse_args()
    dtype = options.dtype or {"bf16": "bf16", "fp8": "fp8_e4m3fn"}[options.stored]
    if options.core and options.dtype and not options.file:
        parser.error("argument --dtype: ComfyUI's own loader takes a file as it is stored; leave it out beside --core")
    if options.file:
        sys.stdout.write(json.dumps(measure(options.file, dtype, options.core)) + "\n")
        return
    with tempfile.TemporaryDirectory(prefix="opensora-loading-") as folder:
        path = Path(folder) / "random.safetensors"
        write_file(path, options.version, options.stored)
        size = path.stat().st_size
        command = [sys.executable, __file__, "--file", str(path), "--dtype", dtype]
        command += ["--core"] if options.core else []
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    result = json.loads(answer)
    ratio = {name: result[name] / size for name in ("private", "mapped", "private afterwards")}
    sys.stdout.write(
        f"file {size / 1e9:.2f} GB, model {result['model'] / 1e9:.2f} GB; private memory grew by "
        f"{ratio['private']:.3f} x file at the peak, {ratio['private afterwards']:.3f} x file afterwards; mapped pages "
        f"{ratio['mapped']:.3f} x file; {result['seconds']:.1f} s\n"
    )


if __name__ == "__main__":
    main()

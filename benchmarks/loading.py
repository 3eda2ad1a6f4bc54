"""Peak memory and time of loading a full-size Open-Sora diffusion model (1.2 G random parameters, bf16).

    python benchmarks/loading.py                      our loader
    python benchmarks/loading.py --core               ComfyUI's own loader on the same file
    python benchmarks/loading.py --dtype fp8_e4m3fn   stored in another dtype

Makes the file in a temporary folder (2.4 GB, removed at the end), loads it in a fresh process on the CPU, and prints
the growth of the resident memory at its peak divided by the size of the file. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from support.random_weights import stdit3_shapes  # noqa: E402

RELEASED = {"hidden_size": 1152, "num_heads": 16, "depth": 28, "caption_channels": 4096}
RANDOM_BLOCK = 1 << 22  # values; repeating one block is as incompressible as a page cache needs


def write_file(path: Path, version: str) -> None:
    """A released-size file of random bf16 values, written without holding it in memory."""
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name, shape in stdit3_shapes(version, **RELEASED).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    block = (torch.randn(RANDOM_BLOCK) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(path: Path, dtype: str, core: bool) -> dict[str, float]:
    """Loads the file in this process; sizes in bytes, time in seconds."""
    from support.comfyui import use_comfyui

    use_comfyui()
    import comfy.sd

    from opensora.opensora_models.native.core import detection as core_detection
    from opensora.opensora_models.native.model.loading import load_model

    core_detection.register()
    before, started = resident_bytes(), time.perf_counter()
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path)) if core else load_model(path, dtype)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"before": before, "peak": peak, "after": resident_bytes(), "seconds": seconds, "model": model.model_size()}


def main() -> None:
    """Makes the file, measures in a fresh process, prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", choices=("1.2", "1.3"), default="1.2")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--core", action="store_true", help="measure ComfyUI's own loader")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        sys.stdout.write(json.dumps(measure(Path(options.file), options.dtype, options.core)) + "\n")
        return
    with tempfile.TemporaryDirectory(prefix="opensora-loading-") as folder:
        path = Path(folder) / "random.safetensors"
        write_file(path, options.version)
        size = path.stat().st_size
        command = [sys.executable, __file__, "--file", str(path), "--dtype", options.dtype]
        command += ["--core"] if options.core else []
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    result = json.loads(answer)
    peak, after = ((result[key] - result["before"]) / size for key in ("peak", "after"))
    sys.stdout.write(
        f"file {size / 1e9:.2f} GB, model {result['model'] / 1e9:.2f} GB; memory grew by {peak:.3f} x file "
        f"at the peak, {after:.3f} x file afterwards; {result['seconds']:.1f} s\n"
    )


if __name__ == "__main__":
    main()

"""Run as a process of its own: load a model, read random tokens in chunks, and print resident bytes before and at the peak."""

import json
import sys
from pathlib import Path

NOT_TOLD = 3
"""The exit code where the system does not tell."""


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def main() -> None:
    import torch

    from postformer.train.session import open_model

    folder, length, chunk, threads = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    model = open_model(folder)
    with torch.inference_mode():
        ids = torch.randint(model.vocab, (1, length), generator=torch.Generator().manual_seed(0))
        model.read(ids[:, : 4 * chunk], model.init_state(1), chunk)
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
        before = resident("VmRSS")
        model.read(ids, model.init_state(1), chunk)
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


if __name__ == "__main__":
    try:
        main()
    except OSError as e:
        print(e, file=sys.stderr)
        sys.exit(NOT_TOLD if "/proc" in str(e) else 1)

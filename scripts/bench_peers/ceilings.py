"""What the machine can do: f32 and bf16 operations, bytes read."""

import json
import subprocess
import sys
import tempfile

from sides import Missing, clocked


def machine_ceilings(places):
    """GFLOP/s and GB/s of two threads from the peers' fma_peak.c, with others' share meanwhile; empty where it does not compile or run."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/fma_peak"
        try:
            subprocess.run(["gcc", "-O3", "-march=native", "-pthread", places.peers / "fma_peak.c", "-o", program], check=True, capture_output=True)
            measured = clocked(places, [program])
        except (OSError, subprocess.CalledProcessError, Missing) as error:
            print(f"the machine's ceilings are unknown: {error} (gcc and AVX-512 with BF16 are needed)", file=sys.stderr)
            return {}
    peaks = json.loads(measured.line["printed"])
    return {key: value for key, value in peaks.items() if key.startswith("hw_")} | {"others": measured.others}

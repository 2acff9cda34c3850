"""A coordinator and six agents on this machine, as real processes over gRPC, without certificates.

    python federate.py numpy_client [--rounds 20]

On real machines the same files are used: `quorate coordinator run` on one, `quorate agent run` on the others.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
QUORATE = str(Path(sys.executable).with_name("quorate"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Train an example over real gRPC, on this machine.")
    parser.add_argument(
        "application", help="numpy_client, sklearn_client, torch_client, keras_client or jax_client"
    )
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    plan = (HERE / "plan.toml").read_text().replace("numpy_client", arguments.application)
    plan = plan.replace("count = 20", f"count = {arguments.rounds}")
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            (Path(folder) / "plan.toml").write_text(plan)
            listening = ["--listen", "localhost:0", "--admin", "localhost:0", "--metrics", "", "--grace", "0"]
            coordinator = subprocess.Popen(
                [
                    QUORATE,
                    "coordinator",
                    "run",
                    folder,
                    "--insecure",
                    "--plan",
                    f"{folder}/plan.toml",
                    *listening,
                ],
                cwd=HERE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            processes.append(coordinator)
            said = dict(
                line.split()[::2] if "port" in line else line.split() for line in _lines(coordinator, 3)
            )
            watching = subprocess.Popen(
                [QUORATE, "runs", "watch", said["run"], "--at", folder], stdout=subprocess.PIPE, text=True
            )
            processes.append(watching)
            print(watching.stdout.readline(), end="")  # the run waits for devices: now they may come
            for device in range(6):
                name = f"device-{device}"
                where = ["--coordinator", f"localhost:{said['devices']}", "--insecure", "--device", name]
                own = ["--task", f"{arguments.application}:task", "--state", f"{folder}/{name}"]
                processes.append(
                    subprocess.Popen(
                        [QUORATE, "agent", "run", *own, *where, "--log-level", "warning"],
                        cwd=HERE,
                        env={**os.environ, "DEVICE": str(device), "OMP_NUM_THREADS": "1"},
                    )
                )
            for line in watching.stdout:
                print(line, end="", flush=True)
            return watching.wait()
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(30)


def _lines(process: subprocess.Popen, count: int) -> list[str]:
    return [process.stdout.readline() for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())

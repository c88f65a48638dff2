"""A run that is killed ten times, at any moment, ends as one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.plugin.conftest import CONFTEST, timeless

SLOW = CONFTEST.replace("    draw =", "    time.sleep(0.0005)\n    draw =").replace(
    "import os\n", "import os\nimport time\n"
)
KILLS = 10


def command(folder, name, *args):
    return [
        *(sys.executable, "-m", "pytest", "--model=scripted", "--suite=none"),
        *("--compress=wanda:0.5", "--compress=rtn:8", "--capcheck-items=all"),
        *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:randomly"),
        f"--capcheck-json={folder.log / name}.json",
        f"--capcheck-records={folder.log / name}.jsonl",
        *args,
    ]


def found(folder, name):
    report = json.loads((folder.log / f"{name}.json").read_text(encoding="utf-8"))
    return timeless(report["checks"]), (folder.log / f"{name}.jsonl").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_ten_kills_change_no_verdict_and_no_score(folder):
    folder.pytester.makeconftest(SLOW)
    place = folder.pytester.path
    subprocess.run(command(folder, "whole", "--capcheck-store=none"), cwd=place, check=False)
    (folder.log / "asked").unlink()
    store = f"--capcheck-store={folder.log / 'killed'}"
    draw = random.Random(0)
    for _ in range(KILLS):
        asked = len(folder.lines("asked")) + draw.randint(1, 300)
        run = subprocess.Popen(command(folder, "parts", store), cwd=place)
        while len(folder.lines("asked")) < asked and run.poll() is None:
            time.sleep(0.002)
        run.kill()
        assert run.wait() == -signal.SIGKILL  # not one of them came to its end
    subprocess.run(command(folder, "parts", store), cwd=place, check=False)
    assert found(folder, "parts") == found(folder, "whole")
    checks, records = found(folder, "whole")
    assert {check["verdict"] for check in checks} == {"retained", "degraded"}
    assert records.count("\n") == 4 * 400 + 40  # and the text for perplexity, of what is degraded

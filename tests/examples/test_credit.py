"""The bank and the merchant: from two tables to a prediction, each party a process."""

import os
import re
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[2] / "examples" / "credit" / "run.py"


def test_two_owners_reach_together_what_one_table_would(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HANSA_DATA"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "140", "MPLBACKEND": "agg"}
    picture = tmp_path / "roc.png"
    done = subprocess.run(
        [sys.executable, str(RUN), "--keep", str(tmp_path / "kept"), "--picture", str(picture)],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    bank, shop, ours, joined = map(float, re.findall(r"(0\.\d{4})$", done.stdout, re.MULTILINE)[-4:])
    assert abs(ours - joined) <= 0.005 and ours > max(bank, shop)
    assert picture.stat().st_size > 10_000
    assert "well_off" not in (tmp_path / "kept" / "shop-aligned.csv").read_text()

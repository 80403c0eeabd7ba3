"""The numbers that the README promises of `salmask demo`, in a wide band. Minutes long: SALMASK_SLOW=1 asks for it."""

import os

import pytest

from salmask.cli.builtin import run_demo


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SALMASK_SLOW"), reason="takes minutes: set SALMASK_SLOW=1")
def test_the_demo_points_at_the_evidence(tmp_path) -> None:
    summary = run_demo(tmp_path / "demo", seed=0, quick=False, say=lambda text: None, progress=lambda name: iter)
    reader, gradcam, full = (summary[name] for name in ("reader", "gradcam", "full"))
    assert full["acc_whole"]["mean"] > 0.85
    assert reader["le"]["mean"] < 0.3 < gradcam["le"]["mean"]
    assert reader["f1"]["mean"] > 0.6
    assert 0.1 < reader["mask_mean"]["mean"] < 0.5
    assert reader["acc_kept"]["mean"] > 0.6 and reader["acc_removed"]["mean"] < 0.4

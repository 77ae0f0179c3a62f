"""The histograms of a report as a picture."""

from __future__ import annotations

import io
import logging
from typing import Any

from audioldm2_jax.data.prepare.report import duration

_SHOWN = (
    ("seconds", "length in seconds", "log"),
    ("rms", "loudness: root mean square in dB of full scale", "linear"),
    ("bandwidth", "bandwidth in Hz", "linear"),
    ("words", "captions in words", "linear"),
)


def draw(report: dict[str, Any]) -> bytes | None:
    """Draws what data/prepare/report.py found, as a PNG file; None where it cannot be drawn, which is logged."""
    from matplotlib.figure import Figure

    try:
        figure = Figure(figsize=(10, 6), layout="constrained")
        spreads = report | {"words": report["captions"]["words"]}
        for axis, (key, label, scale) in zip(figure.subplots(2, 2).flat, _SHOWN):
            axis.set_xlabel(label)
            axis.set_ylabel("captions" if key == "words" else "recordings")
            if spreads[key]["count"]:
                histogram = spreads[key]["histogram"]
                axis.stairs(histogram["counts"], histogram["edges"], fill=True)
                axis.set_xscale(scale)
        figure.suptitle(f"{duration(report['hours'])}, {report['recordings']} recordings")
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110, format="png")
        return drawn.getvalue()
    except Exception as error:  # a picture is never worth the work
        logging.warning("the report's picture is not drawn: %s", str(error) or type(error).__name__)
        return None

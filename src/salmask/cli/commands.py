"""The commands, one frozen dataclass each: its fields are the options, calling it does the job.

Heavy imports stand inside the calls, so that `--help` answers at once.
"""

from salmask.cli.making import Classifier, Convert, Demo, Inpainter, Train
from salmask.cli.showing import Evaluate, Explain, Report, Sanity, Score
from salmask.cli.studying import Study

__all__ = [
    "COMMANDS",
    "Classifier",
    "Demo",
    "Evaluate",
    "Explain",
    "Inpainter",
    "Report",
    "Sanity",
    "Score",
    "Study",
    "Train",
]

COMMANDS = (Demo, Classifier, Train, Inpainter, Explain, Evaluate, Score, Study, Sanity, Report, Convert)

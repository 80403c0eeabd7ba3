"""The commands, one frozen dataclass each: its fields are the options, calling it does the job.

Heavy imports stand inside the calls, so that `--help` answers at once.
"""

from salmask.commands.making import Classifier, Convert, Demo, Inpainter, Train
from salmask.commands.showing import Evaluate, Explain, Report, Sanity, Score
from salmask.commands.studying import Study

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

"""The commands, one frozen dataclass each: its fields are the options, calling it does the job.

Heavy imports stand inside the calls, so that `--help` answers at once.
"""

from salmask.commands.making import Classifier, Demo, Train
from salmask.commands.showing import Evaluate, Explain, Report, Sanity, Score

__all__ = ["COMMANDS", "Classifier", "Demo", "Evaluate", "Explain", "Report", "Sanity", "Score", "Train"]

COMMANDS = (Demo, Classifier, Train, Explain, Evaluate, Score, Sanity, Report)

"""`salmask completion`: commands and options at a press of Tab."""

import contextlib
import io
from dataclasses import dataclass
from typing import Literal

import tyro

from salmask.cli.console import Command, say
from salmask.files import Facts

__all__ = ["CompletionCommand"]


@dataclass(frozen=True, kw_only=True)
class CompletionCommand(Command):
    """Print a script that lets a shell complete commands and options.

    bash: salmask completion bash > ~/.local/share/bash-completion/completions/salmask; fish: salmask completion fish >
    ~/.config/fish/completions/salmask.fish; zsh: salmask completion zsh > ~/.zfunc/_salmask, a folder of $fpath.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.cli.main import COMMANDS

        script = io.StringIO()
        arguments = ["--tyro-write-completion", self.shell, "-"]
        with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
            tyro.extras.subcommand_cli_from_dict(dict(COMMANDS), args=arguments, prog="salmask")
        say(script.getvalue().rstrip("\n"))
        return {"shell": self.shell, "script": script.getvalue()}

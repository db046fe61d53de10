"""Entry point: the list of commands, and what a failure looks like to the user."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from wsss_rt import __version__
from wsss_rt.errors import WsssError, nearest

# name -> one line of help; the module wsss_rt.cli.<name> is imported when the command is called
COMMANDS = {
    "label": "Write a pixel mask for every image.",
    "train": "Train a localizer from images and their tags, or a segmenter from masks.",
    "export": "Compile a trained model to one ONNX file with its card, after a parity check.",
    "bench": "Measure how fast a model and the pipeline run here, with every engine.",
    "eval": "Compare masks, or the boxes of maps, with ground truth.",
    "scenes": "Generate a benchmark of synthetic scenes with exact masks.",
    "models": "List the models at hand, or show a model's card.",
    "doctor": "Show versions and devices, and what is missing for what.",
}


class LazyCommands(TyperGroup):
    """Imports a command's module when it is called, so that ``--help`` stays fast."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of :data:`COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; for the overview a stand-in that carries the help line alone."""
        if cmd_name not in COMMANDS:
            return None
        if ctx is None or cmd_name not in sys.argv:
            return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name], callback=lambda: None)
        module = importlib.import_module(f"wsss_rt.cli.{cmd_name}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(cmd_name)(getattr(module, cmd_name))
        command = get_command(single)
        command.short_help = COMMANDS[cmd_name]
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Look a command up; an unknown name ends with the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyCommands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"wsss-rt {__version__}")
        raise typer.Exit


@app.callback()
def overview(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Image-level tags in, pixel masks out.

    Start with: wsss-rt label ./images --out ./labels
    """


def main() -> None:
    """Run the command line.

    Exit status: 0 done; 1 cannot run; 2 wrong usage; 3 finished, and some images failed.
    ``--debug`` anywhere on the command line shows the traceback of an error.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except WsssError as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        print(f"wsss-rt: error: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # the reader of our output went away, as `| head` does; nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

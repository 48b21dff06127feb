"""torpor rsh"""

from __future__ import annotations

import argparse
import sys

RAW = True
HELP = """Run a command on another host of the job that this is run in: what ssh is for programs that start others
on other hosts, but of the job, and so saved with it. It understands ssh's options and ignores those that are about
login, encryption or terminals; what comes after HOST goes to the shell there.

Standard input, output and error, the exit status, SIGINT, SIGTERM and SIGHUP, the environment and the working
folder (the home folder where there is no such folder) are as if the command ran here; there is no terminal. A
variable that is about a host (HOSTNAME, TMPDIR, DISPLAY, ...) is the other host's. If this command is killed, the
other gets SIGHUP.

Exit status: the command's; 128+N if signal N ended it; 255 if it could not be run or the connection was lost."""
EXAMPLE = """  torpor rsh node2 hostname
  tar c data | torpor rsh node2 tar x
  export HYDRA_LAUNCHER_EXEC=torpor-rsh      (where only the name of a program is taken)"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "torpor rsh [-n] [-f] [-l USER] [ssh's other options] [USER@]HOST COMMAND [ARGUMENT ...]"
    parser.add_argument("-n", action="store_true", help="standard input is /dev/null")
    parser.add_argument("-f", action="store_true", help="go to the background once the command runs")
    parser.add_argument("-l", metavar="USER", help="has to be yourself, as USER@ before HOST")


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import complain
    from torpor.launch.rsh import FAILED, rsh
    from torpor.model.errors import TorporError

    try:
        return rsh(options.words)
    except TorporError as error:
        complain(str(error))
        return FAILED


def main() -> None:
    """The program `torpor-rsh`, for whoever wants one word."""
    from torpor.cli.main import main as torpor

    sys.exit(torpor(["rsh", *sys.argv[1:]]))

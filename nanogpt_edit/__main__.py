"""`python -m nanogpt_edit` is the command line."""

from nanogpt_edit.cli import command

command()

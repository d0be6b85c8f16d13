"""`python -m nanogpt_edit` is the command line."""

import sys

from nanogpt_edit.cli import main

sys.exit(main())

"""The playground: a page, and the edits, traces and runs behind it."""

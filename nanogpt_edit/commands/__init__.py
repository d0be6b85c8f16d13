"""One function per verb: arguments in, calls into the rooms, an exit status out."""

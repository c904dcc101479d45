"""What all commands share: flags, a console, errors in one line."""

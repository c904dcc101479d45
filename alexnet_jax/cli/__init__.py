"""Shared by all commands: flags, --help, a console, errors in one line."""

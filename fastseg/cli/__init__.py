"""Shared by the commands: parsing, exit codes, messages, sub-commands of data."""

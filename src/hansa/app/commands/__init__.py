"""The commands of `hansa`, a module a panel of its help: what each option means, and which function does it.

Bodies import what they need when they run, so that `hansa --help` costs Typer alone.
"""

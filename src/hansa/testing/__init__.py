"""Tools for tests, which we ship: scripted runtimes and small models by hand. Nothing but tests imports this room."""

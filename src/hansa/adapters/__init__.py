"""Models of the learning frameworks: the only room that imports one. Each file needs its own library alone."""

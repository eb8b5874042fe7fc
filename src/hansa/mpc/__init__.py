"""Secret-shared learning: an ordinary PyTorch script is the program that several parties compute without seeing it."""

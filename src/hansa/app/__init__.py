"""What people start: the command line and the federation's certificate authority."""

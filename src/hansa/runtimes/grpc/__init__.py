"""A federation of processes: a server and the workers that dial it, over gRPC and mutual TLS 1.3."""

"""Keys, certificates and signatures; nothing here opens a socket."""

"""The commands of the `esp` command line, one module each."""

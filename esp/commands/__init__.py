"""The commands of the `esp` command line, with a module for each."""

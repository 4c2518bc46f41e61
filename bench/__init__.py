"""The benchmark: esp and its peers under the same load, in the same run. See README.md here."""

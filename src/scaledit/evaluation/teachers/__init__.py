"""Teachers for representation alignment: the networks of extractors that have feature maps. One file per
network. Imports no torch."""

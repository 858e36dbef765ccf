"""What a node is: the protocol core, the disk, and the runtime that drives one with the other."""

"""One mailbox and one writer: facts come in, `core.step` decides, the performer carries it out."""

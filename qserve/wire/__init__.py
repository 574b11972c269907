"""What travels: keys, envelopes, signatures, pickles. No I/O, Redis or clock. docs/design/protocol.md is normative."""

"""What travels: keys, envelopes, signatures, pickles. No I/O, no Redis, no clock. docs/design/protocol.md is normative."""

"""The limit: what a call costs when nothing but the call is done."""
